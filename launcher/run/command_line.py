"""How this process was started, as a person would write it."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import launcher
from launcher.distributed.process_group import is_launcher, parent_command

if TYPE_CHECKING:
    pass


def started_words() -> list[str]:
    """This program as a person would call it here: `launcher train`, or Python and a file."""
    if launcher.command is None:
        return ["python", os.path.relpath(sys.argv[0]) if sys.argv[0] else "launcher/train.py"]
    found = shutil.which("launcher")
    installed = found is not None and Path(found).resolve() == Path(sys.argv[0]).resolve()
    return [*(["launcher"] if installed else ["python", "-m", "launcher"]), launcher.command]


def launch_words() -> list[str]:
    """How this process was started: the command line of torchrun or accelerate where there is one."""
    parent = list(parent_command())
    started = started_words()
    if not is_launcher(parent):
        return started
    if Path(parent[0]).name.startswith("python"):
        parent[:2] = ["python", parent[1]] if parent[1].startswith("-") else [Path(parent[1]).name]
    own = [started[-1]]
    end = next((i for i, word in enumerate(parent) if Path(word).name == Path(own[0]).name), len(parent))
    for i, word in enumerate(parent[:-1]):
        if word in ("-m", "--module") and parent[i + 1] == "launcher":
            end, own = i + 1, ["launcher", own[0]]
        elif word in ("-m", "--module") and parent[i + 1] == f"launcher.{Path(own[0]).stem}":
            end, own = i + 1, [parent[i + 1]]
    return [*parent[:end], *own]


def config_options(words: list[str]) -> list[str]:
    """Those of Hydra's options on a command line that say where the config is."""
    options = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
    found = []
    for i, word in enumerate(words):
        name, given, _ = word.partition("=")
        if name in options:
            found += [word] if given else words[i : i + 2]
    return found
