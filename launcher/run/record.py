"""The record of a run (metrics.jsonl, timings.jsonl): one row per step, in order, whatever was killed."""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from launcher.core.files import numbers, plain, replacing

log = logging.getLogger("launcher")

# In a run directory: rows whose values are lists, an end, an end, counts of bins; rows of such or of images; and a
# table of predictions.
TEST_SAMPLES = "test_samples.npz"  # loss, weight and, of a classification, whether it was right, of each test sample
HISTOGRAMS, MEDIA, TABLE = "histograms.jsonl", "media.jsonl", "wandb/predictions.npz"


class Record:
    """A file of JSON lines, one row per step, in order; its directory exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._last = -1
        self._left = b""  # what a full disk has not taken yet
        self._bytes = self._checksum = 0  # of all rows

    def open(self, resume_step: int | None) -> None:
        """Open for writing, with the rows up to `resume_step`, that included, and nothing else; None starts over.

        What was written after the checkpoint that a run resumes from is written again, and a line torn by a
        kill has no end: both are cut off, atomically, so that a kill in here loses nothing either.
        """
        self.close()
        old = self.path.read_bytes() if self.path.exists() else b""
        # From the end: a run of a million steps starts again as fast as one of ten.
        end, self._last = len(old), -1
        while end:
            begin = old.rfind(b"\n", 0, end - 1) + 1
            row = _parse(old[begin:end])
            if resume_step is not None and row is not None and row["step"] <= resume_step:
                self._last = row["step"]
                break
            end = begin
        if end < len(old):
            with replacing(self.path, "wb", durable=True) as file:
                file.write(old[:end])
        self._bytes, self._checksum = end, zlib.crc32(memoryview(old)[:end])
        self._file, self._left = self.path.open("ab", buffering=0), b""

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, and hand it to the operating system: a kill of this process does not take it back.

        Where the disk is full, that is a warning, and the row waits for the next one or for `sync`.

        Args:
            row: `step` (int, above that of the last row) and numbers by name. Floats read back bit for bit;
                NaN and infinities, which JSON lacks, are written as the strings "nan", "inf" and "-inf".

        Raises:
            ValueError: The step is not above the last one.
        """
        assert self._file is not None, "open() comes before write()"
        step = row["step"]
        if step <= self._last:
            raise ValueError(f"{self.path.name}: a row for step {step} after the row for step {self._last}")
        line = json.dumps({"step": step} | plain(row), allow_nan=False).encode() + b"\n"
        waited, self._left = bool(self._left), self._left + line
        self._bytes, self._checksum = self._bytes + len(line), zlib.crc32(line, self._checksum)
        self._last = step
        try:
            self._hand_over()
        except OSError as error:
            if not waited:
                log.warning("%s cannot be written (%s); its rows wait until it can.", self.path, error.strerror)

    def _hand_over(self) -> None:
        assert self._file is not None
        while self._left:  # a raw file takes what it can
            self._left = self._left[self._file.write(self._left) :]

    def sync(self) -> None:
        """Wait until the rows are on the disk: before a checkpoint that counts on them is made visible.

        Raises:
            OSError: It does not take them.
        """
        if self._file is not None:
            self._hand_over()
            os.fsync(self._file.fileno())

    def mark(self) -> tuple[int, int]:
        """Bytes and checksum of the rows so far, by which `holds` knows them again."""
        return self._bytes, self._checksum

    def holds(self, mark: Sequence[int]) -> bool:
        """Whether the file begins with the rows of a mark: nobody has removed or changed one since."""
        size, checksum = mark
        try:
            with self.path.open("rb") as file:
                return zlib.crc32(file.read(size)) == checksum
        except FileNotFoundError:
            return size == 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows so far, non-finite numbers as floats again. A torn last line is left out."""
        if self.path.exists():
            with self.path.open("rb") as file:
                yield from (numbers(row) for line in file if (row := _parse(line)) is not None)

    def close(self) -> None:
        """Close the file; it can be opened again."""
        if self._file is not None:
            try:
                self._hand_over()
            except OSError as error:
                log.warning("%s lacks its last rows: %s", self.path, error.strerror)
            self._file.close()
            self._file = None


def of_time(timing: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a row of timings.jsonl by the names that trackers show them under."""
    return {f"time/{name}": value for name, value in timing.items() if name not in ("step", "time")}


def measured_at_the_end(summary: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of summary.json: steps, and the metrics of the test split there, by the best model and by the last one."""
    for group, at, prefix in (("best", "best_step", "best/"), ("final", "step", "")):
        found = numbers(summary.get(group))
        measured = {f"{prefix}{name}": value for name, value in found.items() if name.startswith("test/")}
        if measured:
            yield summary.get(at) or 0, measured


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line of the record; None where it is not a whole row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
