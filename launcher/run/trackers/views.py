"""Views of the record, made of it by processes of their own: the trainer's end of the pipe.

TensorBoard and the table hold what metrics.jsonl and timings.jsonl hold and nothing else: they are made anew whenever a
run starts or goes on, and follow the record from there, so a kill leaves no row twice and none out. They look once a
second; in the training process TensorBoard's import alone would hold the interpreter lock for half a second.
"""

import logging
import os
import subprocess
from pathlib import Path

from launcher.run.trackers import process

log = logging.getLogger("launcher")

MADE_ANEW = {"tensorboard": "tb", "csv": "metrics.csv"}  # what is made of the record alone, and where it is
# Seconds that the end of a run waits for its views; what is not written by then is, a little later
PATIENCE = 10.0
PATIENCE_FOR_OTHERS = 30.0  # which import torch and may have a server


class Views:
    """Views in one process, by their names in the setting `trackers`. Nothing here waits, but `close`."""

    def __init__(self, run_dir: Path, names: list[str]) -> None:
        self.names = names
        self._child = process.start(
            "launcher.run.trackers.view_process", str(run_dir), str(os.getpid()), *names, errors=subprocess.STDOUT
        )

    def close(self) -> bool:
        """There is nothing more to come: wait until everything is written; whether it was."""
        patience = PATIENCE if MADE_ANEW.keys() >= set(self.names) else PATIENCE_FOR_OTHERS
        shown = ", ".join(self.names)
        try:
            said, _ = self._child.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            log.warning("%s: not through after %.0f s; it goes on by itself.", shown, patience)
            return False
        if self._child.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or [f"status {self._child.returncode}"]
            log.warning("%s: %s (metrics.jsonl holds every row).", shown, lines[-1].rstrip("."))
        return not self._child.returncode


def start(run_dir: Path, names: list[str]) -> list[Views]:
    """Start views: those that are files together, each other one by itself, so that no server keeps them waiting."""
    files = [name for name in names if name in MADE_ANEW]
    others = [[name] for name in names if name not in MADE_ANEW]
    return [Views(run_dir, each) for each in (files, *others) if each]
