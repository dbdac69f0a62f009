"""The process of views, in which they follow the record."""

import os
import select
import sys
from pathlib import Path

from launcher.core.files import read_json
from launcher.run.trackers.process import ignore_signals
from launcher.run.trackers.view import View, new_rows


def make_view(name: str, run_dir: Path) -> View:
    """The view that a name in `trackers` stands for; what it needs is imported here."""
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
