"""The inputs that a column of a table becomes: fitted on the training split, and then the same for every row."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from launcher.data.table_cells import Cells

FEW_ROWS = 10  # different words from which a column of nothing but different ones names the rows
WORDY = 4  # words in a cell, on average, above which such a column holds texts
CYCLES = {"year": 365.2425, "week": 7.0, "day": 1.0}  # days


@dataclass(frozen=True)
class Column:
    """How the cells of one column become inputs. What it holds is plain, for data.json.

    Args:
        column: Its name.
        kind: `number`, `truth`, `date` or `word`; see `Cells`.
        fill: What a gap is filled with: the median of the training split, of truths the commoner one.
        flag: Whether an input of 0 and 1 says where there is a gap: where the training split has some.
        values: Words that have an input of their own.
        other: Whether the others, of which the training split has some, have one together.
        order: Of dates: `ymd`, `dmy` or `mdy`.
        cycles: Of dates: in which their place is told, as a sine and a cosine.
    """

    column: str
    kind: str
    fill: float = 0.0
    flag: bool = False
    values: list[str] = field(default_factory=list)
    other: bool = False
    order: str | None = None
    cycles: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """A name for each input, in their order."""
        if self.kind == "word":
            own = [f"{self.column}={value}" for value in self.values] + [f"{self.column}: other"] * self.other
        else:
            waves = [f"{self.column}: {wave} of the {cycle}" for cycle in self.cycles for wave in ("sine", "cosine")]
            own = [self.column, *waves]
        return own + [f"{self.column}: missing"] * self.flag

    @property
    def marks(self) -> list[bool]:
        """For each input whether it is 0 and 1 by its nature."""
        own = len(self.inputs) - self.flag
        return [self.kind in ("word", "truth")] * own + [True] * self.flag

    def matrix(self, cells: Cells) -> np.ndarray:
        """The inputs [n, len(self.inputs)] float64 of cells of this kind."""
        gaps = cells.gaps
        if self.kind == "word":
            place = {value: i for i, value in enumerate(self.values)}
            other = len(self.values)  # and one after it for a gap
            at = np.array([*(place.get(word, other) for word in cells.words), other + 1])[cells.values]
            own = at[:, None] == np.arange(len(self.values) + self.other)
        else:
            numbers = np.where(gaps, self.fill, cells.values)
            angles = [2 * np.pi * (numbers % CYCLES[cycle]) / CYCLES[cycle] for cycle in self.cycles]
            own = np.stack([numbers, *(wave(angle) for angle in angles for wave in (np.sin, np.cos))], 1)
        return np.concatenate([own, gaps[:, None]], 1, dtype=np.float64) if self.flag else own.astype(np.float64)


def fit(name: str, cells: Cells, train: np.ndarray, most: int) -> Column:
    """What a column becomes, by the rows of the training split, one of which at least has no gap.

    Args:
        name: Of the column.
        cells: Of all rows.
        train: Rows of the training split.
        most: Words that have an input of their own at most: the most frequent ones.
    """
    here = cells.values[train]
    gaps = cells.gaps[train]
    flag, here = bool(gaps.any()), here[~gaps]
    if cells.kind == "word":
        counts = np.bincount(here, minlength=len(cells.words))
        frequent = sorted(np.flatnonzero(counts).tolist(), key=lambda i: (-counts[i], cells.words[i]))
        values = sorted(cells.words[i] for i in frequent[:most])
        return Column(name, "word", flag=flag, values=values, other=len(frequent) > most)
    if cells.kind == "truth":
        return Column(name, "truth", fill=float(2 * here.sum() > len(here)), flag=flag)
    fill = float(np.median(here))
    if cells.kind == "number":
        return Column(name, "number", fill=fill, flag=flag)
    span = float(here.max() - here.min())
    varied = {"year": span > 1, "week": span > 1 and len(np.unique(here // 1 % 7)) > 1, "day": bool((here % 1).any())}
    cycles = [cycle for cycle, length in CYCLES.items() if varied[cycle] and span >= length]
    return Column(name, "date", fill=fill, flag=flag, order=cells.order, cycles=cycles)


def idle(cells: Cells, train: np.ndarray) -> str:
    """Why nothing can be learned from a column; empty: something can.

    Args:
        cells: Of all rows.
        train: Rows of the training split.
    """
    here, gaps = cells.values[train], cells.gaps[train]
    if gaps.all():
        return "empty"
    if not gaps.any() and (here == here[0]).all():
        return "constant"
    here = here[~gaps]
    distinct = len(np.unique(here))
    if cells.kind == "word" and distinct > FEW_ROWS and 2 * distinct > len(here):
        return "text" if sum(len(word.split()) for word in cells.words) > WORDY * len(cells.words) else "identifier"
    counts = np.arange(len(cells.values))
    whole = cells.kind == "number" and cells.values[0] in (0, 1) and len(counts) > 2
    return "identifier" if whole and np.array_equal(cells.values, cells.values[0] + counts) else ""


def named_in(setting: str, names: Sequence[str]) -> str:
    """A setting with a list of columns, as it is typed in a shell."""
    if all(
        re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name.lower() not in ("null", "true", "false")
        for name in names
    ):
        return f"{setting}=[{','.join(names)}]"
    quoted = (json.dumps(name, ensure_ascii=False) for name in names)
    return shlex.quote(f"{setting}=[{','.join(quoted)}]")
