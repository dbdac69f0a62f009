"""The pictures of the trials of a sweep, drawn by processes of their own: no device waits for one.

A process that has drawn one draws the next in half of the time, and a run of a second took as long for its pictures as
for its training.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher.core.processes import cores
from launcher.run.pictures import draw, undrawn
from launcher.sweep.fork_server import start_process

BATCH = 20  # of one process: as long as trials run, it ends now and then and gives back its memory


class Drawing:
    """Draws the pictures of runs that have ended: one process at a time beside the trials, all cores at the end."""

    def __init__(self) -> None:
        self.waiting: list[Path] = []
        self._process: Any = None

    def add(self, path: Path) -> None:
        """Have the pictures of a run that has finished, or been stopped, drawn, where they are missing."""
        if path not in self.waiting and (path / "summary.json").exists() and undrawn(path):
            self.waiting.append(path)

    def go_on(self) -> None:
        """Start a process for what waits, unless one draws; to be called now and then."""
        if self._process is not None and self._process.exitcode is None:
            return
        self._process = None
        if self.waiting:
            batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
            self._process = start_process(_draw_all, batch, True)

    def finish(self, paths: Iterable[Path]) -> None:
        """Draw all that is left, also of these run directories, and wait for it."""
        if self._process is not None:
            self._process.join()
        for path in paths:
            self.add(path)
        left, self.waiting = self.waiting, []
        count = min(len(cores()), len(left))
        processes = [start_process(_draw_all, left[number::count], False) for number in range(count)]
        for process in processes:
            process.join()


def _draw_all(paths: Sequence[Path], beside_trials: bool) -> None:
    """Be a process that draws; beside trials it takes what they leave of the cores."""
    parent = os.getppid()
    if beside_trials and sys.platform != "win32":
        os.nice(19)
    for path in paths:
        if os.getppid() != parent:
            return  # the sweep was killed: its next start draws what is missing
        draw(path)
