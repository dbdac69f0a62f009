"""What people look at of the trials of a sweep, made by processes of their own, so that no device waits for it.

Those are the pictures, and the W&B run of a trial that was through before W&B's process would have started. For a run
of a second each costs more than its training; one process that makes them for many takes a fraction of that.
"""

import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from launcher.core.processes import cores
from launcher.distributed.stop_request import StopRequest
from launcher.run.pictures import undrawn
from launcher.run.run_directory import UNSHOWN
from launcher.sweep.fork_server import start_process

STOPPING = 10.0  # seconds that a sweep which was asked to stop waits for this
BATCH = 20  # of one process: as long as trials run, it ends now and then and gives back its memory


class Showing:
    """Shows runs that have ended: one process at a time beside the trials, as many as there are cores at the end."""

    def __init__(self) -> None:
        self.waiting: list[Path] = []
        self._process: Any = None

    def add(self, path: Path) -> None:
        """Have a run shown that has finished, or been stopped, where that is missing."""
        if path not in self.waiting and (path / "summary.json").exists() and is_left(path):
            self.waiting.append(path)

    def go_on(self) -> None:
        """Start a process for what waits, unless one draws; to be called now and then."""
        if self._process is not None and self._process.exitcode is None:
            return
        self._process = None
        if self.waiting:
            batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
            self._process = start_process(_show_all, batch, True)

    def finish(self, paths: Iterable[Path], stop: StopRequest) -> None:
        """Show all that is left, also of these run directories, and wait for it: where that is to stop, for seconds."""
        for path in paths:
            self.add(path)
        left, self.waiting = self.waiting, []
        count = min(len(cores()), len(left))
        processes = [start_process(_show_all, left[number::count], False) for number in range(count)]
        processes += [] if self._process is None else [self._process]
        deadline = math.inf
        while (sentinels := [process.sentinel for process in processes if process.exitcode is None]) and not (
            time.monotonic() > deadline
        ):
            connection.wait(sentinels, timeout=0.2)
            deadline = min(deadline, time.monotonic() + STOPPING) if stop else math.inf
        for process in processes:
            process.terminate()  # the next start of the sweep shows what this has not
            process.join()


def is_left(path: Path) -> bool:
    """Whether a run that has ended has left something to show: pictures, or its W&B run."""
    return undrawn(path) or (path / UNSHOWN).exists()


def _show_all(paths: Sequence[Path], beside_trials: bool) -> None:
    """Be a process that shows runs; beside trials it takes what they leave of the cores."""
    from launcher.run.reporter import show_left  # which imports torch
    from launcher.run.trackers import wandb

    parent = os.getppid()
    if beside_trials and sys.platform != "win32":
        os.nice(10)
    for path in paths:
        if os.getppid() != parent:
            return  # the sweep was killed: its next start makes what is missing
        if (path / UNSHOWN).exists():
            wandb.warm_up()
        show_left(path)
