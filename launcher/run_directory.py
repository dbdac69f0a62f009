"""The directory of a run: made once, locked while a run is in it, resumed when it is started again."""

import contextlib
import fcntl
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config import Composed, check_writable, differences, directory_override, make_directory
from launcher.distributed import is_launcher, parent_command
from launcher.errors import ConfigError
from launcher.files import read_json, write_json, write_text
from launcher.schedulers import depends_on_length
from launcher.slurm import last_step

log = logging.getLogger("launcher")

CONFIG = ".hydra/config.yaml"
LOCK = ".lock"


class RunDirectory:
    """A run directory that this process holds the lock of.

    Attributes:
        path: Absolute.
        resumed: True where a run was in it before.
        complete: True where that has ended and nothing is left to do: what is in it stays as it is.
    """

    def __init__(self, path: Path, resumed: bool, lock: int, complete: bool = False) -> None:
        self.path, self.resumed, self._lock, self.complete = path, resumed, lock, complete

    def run_id(self, wanted: str | None) -> str:
        """A name that the run keeps over every resume, for trackers that know runs by an id.

        Args:
            wanted: What a person calls it; None: as before, or a new name.
        """
        file = self.path / ".hydra" / "run_id"
        if wanted is not None or not file.exists():
            write_text(file, wanted or uuid.uuid4().hex[:12])
        return file.read_text().strip()

    def is_complete(self, step: int) -> bool:
        """Whether a run ended here at this step, with everything measured and written."""
        summary = read_json(self.path / "summary.json")
        return summary.get("status") == "finished" and summary["step"] == step

    def resume_command(self, overrides: list[str]) -> str:
        """The command that goes on with this run: the one that started it, with the directory named."""
        kept = [o for o in overrides if not o.startswith("hydra.run.dir=")]
        words = [*launch_words(), *config_options(sys.argv[1:]), *kept]
        here = os.path.relpath(self.path)
        return shlex.join([*words, directory_override(self.path if here.startswith("..") else here)])

    def stopped(self, step: int, reason: str | None, overrides: list[str]) -> None:
        """Note and say that a run ended before its last step, why, and how it goes on."""
        command = self.resume_command(overrides)
        write_json(self.path / "stopped.json", {"step": step, "reason": reason, "resume": command})
        log.info("stopped    at step %d (%s), everything is saved. To go on:\n  %s", step, reason, command)

    def close(self) -> None:
        """Let go of the lock; the kernel does it for a process that is killed."""
        os.close(self._lock)


def open_run_directory(composed: Composed, total_steps: int) -> RunDirectory:
    """Make a new run directory, or take up one that a run was in before. For rank 0 alone.

    A directory that the person named is resumed where a run was in it. So is the unfinished one of the same launch,
    where torchrun restarts a group or SLURM requeues a job. A name made from the clock is never shared: two runs that
    start in the same second get two directories.

    Args:
        composed: The config of the run.
        total_steps: Updates that it is to have.

    Raises:
        ConfigError: Another run is in it, it belongs to another config or has gone further, or it cannot be written.
    """
    path = Path(str(composed.hydra.run.dir)).resolve()
    check_writable(path)
    resumed = False
    before = None if composed.chose_directory else _of_this_launch(path, composed)
    if composed.chose_directory:
        resumed = (path / CONFIG).is_file()
        if resumed:
            check_same(path, composed)
        make_directory(path, "hydra.run.dir")
    elif before is not None:
        path, resumed = before, True
    else:
        path = _make_new(path)
    if (done := last_step(path)) > total_steps:
        raise ConfigError(f"epochs, max_steps: {total_steps} updates, but this run has done {done} already.")
    lock = _lock(path)
    summary = read_json(path / "summary.json")
    complete = summary.get("status") == "finished" and (summary.get("step") == total_steps or "reason" in summary)
    if not complete:
        _write_config(path, composed)
    return RunDirectory(path, resumed, lock, complete)


def holds_checkpoint(composed: Composed) -> bool:
    """Whether this start will go on from a checkpoint, as any rank can see it, before anything is made."""
    path = Path(str(composed.hydra.run.dir)).resolve()
    before = path if composed.chose_directory else _of_this_launch(path, composed)
    return before is not None and any((before / "checkpoints").glob("step_*"))


def _make_new(path: Path) -> Path:
    for number in range(1000):
        attempt = path if number == 0 else path.with_name(f"{path.name}_{number}")
        try:
            make_directory(attempt, "hydra.run.dir", exist_ok=False)
            return attempt
        except FileExistsError:
            continue
    raise ConfigError(f"hydra.run.dir={path}: taken a thousand times over. Name a directory of your own.")


def check_same(path: Path, composed: Composed) -> None:
    """Check that a run directory can be resumed with a config.

    Raises:
        ConfigError: It belongs to a run with another one.
    """
    old: Any = OmegaConf.to_container(OmegaConf.load(path / CONFIG))
    new: Any = OmegaConf.to_container(composed.settings)
    lines = differences(old, new)
    longer = [f"{key}: {old[key]} -> {new[key]}" for key in ("epochs", "max_steps") if old[key] != new[key]]
    hint = ""
    if longer and depends_on_length(new["scheduler"]):
        lines += longer
        hint = (
            "\nIts learning rates follow its length (T_max, total_iters or the like of null, or a warmup that is a "
            "fraction), so it cannot be prolonged; with scheduler=constant, or lengths of its own, it could."
        )
    if lines:
        raise ConfigError(
            f"hydra.run.dir={path} belongs to a run with another config:\n  "
            + "\n  ".join(lines)
            + hint
            + "\nUse the settings it was made with to resume it, or another directory for a new run."
        )


def launch_names() -> list[str]:
    """What a restart by torchrun and a requeue by SLURM have in common with the first start; none outside of both."""
    names, run = [], os.environ.get("TORCHELASTIC_RUN_ID")
    if run not in (None, "", "none"):
        names.append(f"elastic {run}")
    elif run is not None:
        # accelerate names no run: its agent, the parent of all ranks of a node, is known by its pid and start
        with contextlib.suppress(OSError, IndexError):
            started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
            names.append(f"agent {socket.gethostname()} {os.getppid()} {started}")
    if job := os.environ.get("SLURM_JOB_ID"):
        names.append(f"slurm {job}")
    return names


def _of_this_launch(path: Path, composed: Composed) -> Path | None:
    """The run directory that an earlier start of this launch made, beside the one for now.

    An unfinished one; a finished one where the launch begins anew, as when something failed after the run's end.
    """
    names = set(launch_names())
    requeued, restarted = (int(os.environ.get(f"{by}_RESTART_COUNT") or 0) for by in ("SLURM", "TORCHELASTIC"))
    if not (requeued or restarted):  # what else this job or allocation runs is another run
        names = {name for name in names if not name.startswith("slurm ")}
    found: dict[bool, Path] = {}
    for lock in [*path.parent.glob(f"*/{LOCK}"), *path.parent.parent.glob(f"*/*/{LOCK}")] if names else ():
        with contextlib.suppress(OSError, ValueError, ConfigError):
            if names & set(json.loads(lock.read_text()).get("launches") or ()):
                check_same(lock.parent, composed)
                found[read_json(lock.parent / "summary.json").get("status") == "finished"] = lock.parent
    return found.get(False) or (found.get(True) if requeued or restarted else None)


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock (flock) of a file that is there, or would if one may not look."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def is_held(path: Path) -> bool:
    """Whether a run is in a run directory."""
    return (path / LOCK).exists() and is_locked(path / LOCK)


def _lock(path: Path) -> int:
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 1000).decode(errors="replace") or "an unknown process"
        os.close(handle)
        raise ConfigError(
            f"hydra.run.dir={path}: a run is in it ({holder.strip()}). Stop it, or choose another."
        ) from error
    who = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "launches": launch_names(),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(who).encode(), 0)
    return handle


def _write_config(path: Path, composed: Composed) -> None:
    """The three files that Hydra leaves in a run directory."""
    (path / ".hydra").mkdir(exist_ok=True)
    for name, text in (
        ("hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": composed.hydra}))),
        ("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(composed.overrides))),
        ("config.yaml", OmegaConf.to_yaml(composed.settings)),
    ):
        write_text(path / ".hydra" / name, text)


def started_script() -> str:
    """What was started, as a person would name it here: a command that the shell finds, else a file."""
    if not sys.argv[0]:
        return "launcher/train.py"
    found = shutil.which(Path(sys.argv[0]).name)
    if found is not None and Path(found).resolve() == Path(sys.argv[0]).resolve():
        return Path(found).name
    return os.path.relpath(sys.argv[0])


def launch_words() -> list[str]:
    """How this process was started: the launcher's command line where there is one."""
    parent = parent_command()
    script = started_script()
    if is_launcher(parent):
        if Path(parent[0]).name.startswith("python"):
            parent[:2] = ["python", parent[1]] if parent[1].startswith("-") else [Path(parent[1]).name]
        name = Path(script).name
        names = (name, name.replace("train", "rerun"))  # which goes on as train.py
        own = next((i for i, word in enumerate(parent) if Path(word).name in names), len(parent))
        for i, word in enumerate(parent[:-1]):
            if word in ("-m", "--module") and parent[i + 1] in [f"launcher.{Path(one).stem}" for one in names]:
                own, script = i + 1, f"launcher.{Path(script).stem}"
        return [*parent[:own], script]
    return [script] if not script.endswith(".py") else ["python", script]


def config_options(words: list[str]) -> list[str]:
    """Those of Hydra's options on a command line that say where the config is."""
    options = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
    found = []
    for i, word in enumerate(words):
        name, given, _ = word.partition("=")
        if name in options:
            found += [word] if given else words[i : i + 2]
    return found
