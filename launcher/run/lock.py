"""The lock of a run directory, which also says which launch has made it."""

import contextlib
import os
import socket
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.locks import Locked, is_locked, take_lock
from launcher.core.processes import process_facts

LOCK = ".lock"


def launch_names() -> list[str]:
    """What a restart by torchrun and a requeue by SLURM have in common with the first start; none outside of both."""
    names, run = [], os.environ.get("TORCHELASTIC_RUN_ID")
    if run not in (None, "", "none"):
        names.append(f"elastic {run}")
    elif run is not None:
        # accelerate names no run: its agent, the parent of all ranks of a node, is known by its pid and start
        with contextlib.suppress(IndexError):
            started = process_facts(os.getppid())[19]
            names.append(f"agent {socket.gethostname()} {os.getppid()} {started}")
    if job := os.environ.get("SLURM_JOB_ID"):
        names.append(f"slurm {job}")
    return names


def is_held(path: Path) -> bool:
    """Whether a run is in a run directory."""
    return (path / LOCK).exists() and is_locked(path / LOCK)


def lock(path: Path) -> int:
    """Keep other starts out of a run directory as long as the returned handle is open; ConfigError: a run is in it."""
    who = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    try:
        return take_lock(path / LOCK, who | {"launches": launch_names()})
    except Locked as error:
        raise ConfigError(f"hydra.run.dir={path}: a run is in it ({error}). Stop it, or choose another.") from error
