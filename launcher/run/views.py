"""TensorBoard and a table (metrics.csv) as views of the record, written by a process of their own.

Both hold what metrics.jsonl and timings.jsonl hold and nothing else: they are made anew whenever a run starts or goes
on, and follow the record from there, so a kill leaves no row twice and none out. Training pays a byte in a pipe for a
row; TensorBoard's import alone would hold its interpreter lock for half a second.
"""

import contextlib
import csv
import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

if __name__ == "__main__" and not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.core.files import number, numbers, read_json
from launcher.run.tracking import of_time

log = logging.getLogger("launcher")

PATIENCE = 10.0  # seconds that the end of a run waits for its views; what is not written by then is, a little later


class Views:
    """The trainer's end of the pipe. Nothing here waits, but `close`.

    Args:
        run_dir: Run directory, with metrics.jsonl and timings.jsonl in it.
        names: Of the views: `tensorboard` (tb/), `csv` (metrics.csv).
    """

    def __init__(self, run_dir: Path, names: list[str]) -> None:
        from launcher.distributed.children import sheltered  # not at the top: this file is a script, too

        with sheltered():
            self._child = subprocess.Popen(
                [sys.executable, "-P", __file__, str(run_dir), str(os.getpid()), *names],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the trainer, which then calls close
            )
        assert self._child.stdin is not None
        self._pipe = self._child.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def look(self) -> None:
        """There is a new row. Returns at once."""
        with contextlib.suppress(OSError):  # full: it has been told often enough; broken: close says so
            os.write(self._pipe, b"\n")

    def close(self) -> bool:
        """There is nothing more to come: wait until everything is written; whether it was."""
        try:
            said, _ = self._child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("tensorboard, csv: not through after %.0f s; they go on by themselves.", PATIENCE)
            return False
        if self._child.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or [f"status {self._child.returncode}"]
            log.warning("tensorboard, csv: %s (metrics.jsonl holds every row).", lines[-1].rstrip("."))
        return not self._child.returncode


# What follows runs in the process of the views only.


class View(Protocol):
    """Something made of the rows of a run, in order."""

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl, and that of timings.jsonl for the same step (empty where it was lost)."""

    def flush(self) -> None:
        """Make what was taken visible to readers."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Take summary.json (empty where the run did not come to its end), and end."""


class TensorBoard:
    """An event file in tb/, by the writer that torch.utils.tensorboard uses, without importing torch for it."""

    def __init__(self, run_dir: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        for old in (run_dir / "tb").glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventFileWriter(str(run_dir / "tb"))
        # A TensorBoard that has the file before this one in memory forgets it here.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(step=0, session_log=start))
        self._time = 0.0

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """See View."""
        self._time = timing.get("time", self._time)
        self._add(row["step"], {name: value for name, value in row.items() if name != "step"} | of_time(timing))

    def flush(self) -> None:
        """See View."""
        self._writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """See View."""
        for group, at, prefix in (("best", "best_step", "best/"), ("final", "step", "")):
            found = numbers(summary.get(group))
            measured = {f"{prefix}{name}": value for name, value in found.items() if name.startswith("test/")}
            self._add(summary.get(at) or 0, measured)
        self._writer.close()

    def _add(self, step: int, figures: Mapping[str, Any]) -> None:
        values = [self._summary.Value(tag=name, simple_value=number(value)) for name, value in figures.items()]
        if values:
            self._writer.add_event(self._event(step=step, wall_time=self._time, summary=self._summary(value=values)))


class Table:
    """metrics.csv: a line per row, a column per figure in the order in which they came up; empty where there is none.

    Numbers stand as in metrics.jsonl, so they read back bit for bit.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.csv"
        self._columns: list[str] = []
        self._extend(["step", "epoch"], [])

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """See View."""
        new = [name for name in row if name not in self._columns]
        if new:
            self._file.close()
            with self.path.open(newline="") as file:
                before = list(csv.DictReader(file))
            self._extend(new, before)
        self._writer.writerow(row)

    def flush(self) -> None:
        """See View."""
        self._file.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """See View."""
        self._file.close()

    def _extend(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Begin the file again with more columns, in one go."""
        self._columns += columns
        beside = self.path.with_name(".metrics.csv.new")
        self._file = beside.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self._columns, restval="")
        self._writer.writeheader()
        self._writer.writerows(rows)
        self._file.flush()
        os.replace(beside, self.path)


VIEWS: dict[str, Callable[[Path], View]] = {"tensorboard": TensorBoard, "csv": Table}


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
        if row is None or (timing is None and not complete):
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
            # The end of the pipe is not enough: what a killed trainer has forked may hold it open.
            if select.select([0], [], [], 1.0)[0]:
                ended = not os.read(0, 65536)
            ended = ended or os.getppid() != trainer
    for view in views:
        view.close(read_json(run_dir / "summary.json"))


def main() -> None:
    """Run as the process of the views: `python launcher/run/views.py RUN_DIR TRAINER_PID NAME...`."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # a cluster signals every process of a step
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    run_dir, trainer, *names = sys.argv[1:]
    try:
        serve(Path(run_dir), int(trainer), [VIEWS[name](Path(run_dir)) for name in names])
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
