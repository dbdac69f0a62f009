"""The process of views, in which they follow the record."""

import json
import os
import select
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from launcher.core.files import read_json
from launcher.run.trackers.process import ignore_signals


class View(Protocol):
    """Something made of the rows of a run, in order."""

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl, and that of timings.jsonl for the same step (empty where it was lost)."""

    def flush(self) -> None:
        """Make what was taken visible to readers."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Take summary.json (empty where the run did not come to its end), and end."""


def make_view(name: str, run_dir: Path) -> View:
    """The view that a name in `trackers` stands for, or a person's own class; what it needs is imported here."""
    if "." in name:
        from launcher.config.checks import own_tracker

        sys.path.append(os.getcwd())  # last, where it hides nothing
        own: View = own_tracker(name)(run_dir)
        return own
    if name == "tensorboard":
        from launcher.run.trackers.tensorboard import TensorBoard

        return TensorBoard(run_dir)
    if name == "csv":
        from launcher.run.trackers.csv import Table

        return Table(run_dir)
    from launcher.run.trackers.accelerate import AccelerateView

    return AccelerateView(run_dir, name)


def serve(run_dir: Path, trainer: int, views: list[View]) -> None:
    """Follow the record until the trainer says that it is complete, or is gone."""
    ended = False
    with (run_dir / "metrics.jsonl").open("rb") as record, (run_dir / "timings.jsonl").open("rb") as clock:
        while True:
            for row, timing in new_rows(record, clock, ended):
                for view in views:
                    view.row(row, timing)
            for view in views:
                view.flush()
            if ended:
                break
            # The end of the pipe, in which nothing comes, is not enough: what a killed trainer has forked may hold it.
            ended = bool(select.select([0], [], [], 1.0)[0]) or os.getppid() != trainer
    for view in views:
        view.close(read_json(run_dir / "summary.json"))


def new_rows(record: BinaryIO, clock: BinaryIO, complete: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows added to metrics.jsonl since the last call, each with that of timings.jsonl, which is written after it.

    Args:
        record: Read up to the last row that was taken.
        clock: The same of timings.jsonl.
        complete: Whether what is not there will never be: a timing that a kill took is left empty.
    """
    while True:
        before = record.tell(), clock.tell()
        row, timing = _next_row(record), _next_row(clock)
        while row and timing and timing["step"] < row["step"]:
            timing = _next_row(clock)
        timed = row is not None and "lr" in row  # else hooks alone have figures at that step, and nothing was timed
        if row is None or (timed and timing is None and not complete):
            record.seek(before[0])
            clock.seek(before[1])
            return
        if timing is not None and timing["step"] > row["step"]:
            clock.seek(before[1])
            timing = None
        yield row, timing or {}


def _next_row(file: BinaryIO) -> dict[str, Any] | None:
    """The next line; None where there is none, or none with an end yet."""
    at = file.tell()
    line = file.readline()
    if line.endswith(b"\n"):
        row: dict[str, Any] = json.loads(line)
        return row
    file.seek(at)
    return None


def main() -> None:
    """Run as the process of views: RUN_DIR TRAINER_PID NAME... in sys.argv."""
    ignore_signals()
    run_dir, trainer, *names = sys.argv[1:]
    with os.fdopen(os.dup(1), "w") as answer:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for standard in (1, 2):  # nobody reads what trackers say before the end, and a pipe that is full would block
            os.dup2(nothing, standard)
        try:
            serve(Path(run_dir), int(trainer), [make_view(name, Path(run_dir)) for name in names])
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=answer)
            sys.exit(1)
