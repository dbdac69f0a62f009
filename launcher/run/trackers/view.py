"""What a view of the record is, and what it is given."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

from launcher.core.files import numbers


class View(Protocol):
    """Something made of the rows of a run, in order."""

    def row(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl, and that of timings.jsonl for the same step (empty where it was lost)."""

    def flush(self) -> None:
        """Make what was taken visible to readers."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Take summary.json (empty where the run did not come to its end), and end."""


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


def measured_at_the_end(summary: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of summary.json: steps, and the metrics of the test split there, by the best model and by the last one."""
    for group, at, prefix in (("best", "best_step", "best/"), ("final", "step", "")):
        found = numbers(summary.get(group))
        measured = {f"{prefix}{name}": value for name, value in found.items() if name.startswith("test/")}
        if measured:
            yield summary.get(at) or 0, measured
