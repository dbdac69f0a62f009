"""A table, metrics.csv, as a view of the record."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
