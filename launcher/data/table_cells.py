"""The cells of a column: numbers, truths, dates or words, and where there is a gap."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from launcher.core.errors import ConfigError
from launcher.data.table_statistics import NUMBER

MISSING = {"", "nan", "-nan", "na", "n/a", "<na>", "#n/a", "#na", "null"}
STAND_INS = {"?", "-", "--", ".", "unknown", "missing", "none", "nil"}  # a gap, in a column of numbers
TRUTHS = {"true": 1.0, "false": 0.0}
MOSTLY = 0.8  # numbers in a column from which other texts are mistakes, and below which all are words
TIME = r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?)?(?:Z|[+-]\d{2}:?\d{2})?"
YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})" + TIME, re.ASCII)
YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})" + TIME, re.ASCII)
EPOCH, DAY = pd.Timestamp("1970-01-01"), pd.Timedelta(days=1)


@dataclass
class Cells:
    """What a column holds.

    Attributes:
        kind: `number`, `truth` (0 or 1), `date` (days since 1970-01-01, UTC) or `word`.
        values: [n] float64, NaN in a gap; of words [n] int64, the place in `words`, -1 in a gap.
        words: The different words.
        order: Of dates: `ymd`, `dmy` or `mdy`.
        notes: Lines about what was guessed.
    """

    kind: str
    values: np.ndarray
    words: list[str] = field(default_factory=list)
    order: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def gaps(self) -> np.ndarray:
        """Where nothing stands, [n] bool."""
        return self.values < 0 if self.kind == "word" else np.isnan(self.values)


def gap_texts(missing: Sequence[str]) -> set[str]:
    """Texts that mean a gap, casefolded: those that are named, beside MISSING."""
    return {text.strip().casefold() for text in missing} | MISSING


def plain(text: str, decimal: str | None) -> str:
    """A number as Python writes it; any other text stays none."""
    return text.replace(".", " ").replace(",", ".") if decimal == "," else text


def comma_is_decimal(texts: Iterable[Any], parted: bool) -> bool:
    """Whether different texts are numbers with a decimal comma.

    Args:
        texts: Of a column.
        parted: Whether commas part the columns: then 1,234 alone is taken for a thousand.
    """
    sure = not parted
    found = False
    for text in texts:
        text = str(text).strip()
        if text.casefold() in MISSING or text in STAND_INS:
            continue
        if not re.fullmatch(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?([eE][+-]?\d+)?", text, re.ASCII):
            return False
        found |= "," in text
        sure |= "," in text and not re.fullmatch(r"[+-]?\d{1,3},\d{3}", text)
    return found and sure


def reader_of_numbers(decimal: str | None, thousands: str | None) -> Callable[[str], float | None]:
    """A function from a text to its number, or None.

    Args:
        decimal: What a number has before its fraction; None: a point.
        thousands: What it has between its thousands; None: any that is not the decimal sign.
    """
    signs = thousands or (". '\u2019\u00a0\u202f" if decimal == "," else ", '\u2019\u00a0\u202f")
    if " " in signs:
        signs += "\u00a0\u202f"
    point = re.escape(decimal or ".")
    grouped = re.compile(rf"[+-]?\d{{1,3}}([{re.escape(signs)}])\d{{3}}(\1\d{{3}})*({point}\d*)?", re.ASCII)

    def number(text: str) -> float | None:
        if found := grouped.fullmatch(text):
            text = text.replace(found[1], "")
        text = text.replace(",", ".") if decimal == "," and "." not in text else plain(text, decimal)
        return float(text) if NUMBER.fullmatch(text) else None

    return number


def read_cells(
    column: pd.Series,
    number: Callable[[str], float | None],
    missing: Sequence[str],
    refuse: Callable[[int, str], ConfigError],
    kind: str | None = None,
    order: str | None = None,
) -> Cells:
    """What a column holds.

    Args:
        column: As pandas reads it.
        number: From a text to its number, or None.
        missing: Texts that mean a gap, beside those that pandas knows.
        refuse: Makes the error about a row and what is wrong with it; without a full stop, what to do is added.
        kind: What the column held in training; None: whatever it seems to hold.
        order: Of its dates in training.

    Raises:
        ConfigError: A cell is not of the kind of the others, or of that in training; or it is not finite.
    """
    dtype = column.dtype
    if pd.api.types.is_bool_dtype(dtype):
        column, dtype = column.astype(object), np.dtype(object)  # a truth is a number for pandas
    elif pd.api.types.is_numeric_dtype(dtype) and kind in (None, "number"):
        return _finite(Cells("number", column.to_numpy(np.float64, na_value=np.nan)), refuse)
    elif pd.api.types.is_datetime64_any_dtype(dtype) and kind in (None, "date"):
        utc = column.dt.tz_convert(None) if getattr(dtype, "tz", None) else column
        return Cells("date", ((utc - EPOCH) / DAY).to_numpy(np.float64), order="ymd")
    if pd.api.types.is_numeric_dtype(dtype):  # of another kind in training: as it would be written
        column = column.map(lambda value: f"{value:.15g}", na_action="ignore").astype(object)
    try:
        codes, found = pd.factorize(column)
    except TypeError as error:
        raise refuse(0, "is a list or the like") from error
    words = [str(word).strip() for word in found]
    gone = gap_texts(missing)
    return _of_texts(np.asarray(codes), words, [w.casefold() in gone for w in words], number, refuse, kind, order)


def _of_texts(
    codes: np.ndarray,
    words: list[str],
    gaps: list[bool],
    number: Callable[[str], float | None],
    refuse: Callable[[int, str], ConfigError],
    kind: str | None,
    order: str | None,
) -> Cells:
    """What a column of texts holds, by its different ones and their places [n], -1 in a gap."""
    here = [i for i, gap in enumerate(gaps) if not gap]

    def cells(kind: str, values: dict[int, float], notes: Sequence[str] = (), order: str | None = None) -> Cells:
        by_place = np.array([*(values.get(i, np.nan) for i in range(len(words))), np.nan])
        return Cells(kind, by_place[codes], order=order, notes=list(notes))

    if kind in (None, "number"):
        numbers = {i: value for i in here if (value := number(words[i])) is not None}
        others = [i for i in here if i not in numbers]
        counts = np.bincount(codes[codes >= 0], minlength=len(words))
        share = counts[list(numbers)].sum() / max(1, counts[here].sum())
        strange = [i for i in others if words[i].casefold() not in STAND_INS]
        if kind == "number" or (here and not others) or (not strange and share >= 0.5) or share >= MOSTLY:
            if strange:
                row = int(np.isin(codes, strange).argmax())
                raise refuse(row, "is no number")
            signs = sorted({words[i] for i in others})
            notes = [f"{', '.join(map(repr, signs))} is taken for a gap"] if signs else []
            found = cells("number", numbers, notes)
            return _finite(found, refuse)
    if kind in (None, "truth") and here and all(words[i].casefold() in TRUTHS for i in here):
        return cells("truth", {i: TRUTHS[words[i].casefold()] for i in here})
    if kind in (None, "date") and here:
        days, order, notes = _days([words[i] for i in here], order)
        if order is not None:
            return cells("date", dict(zip(here, days, strict=True)), notes, order)
    if kind in ("truth", "date") and here:
        fault = "is neither true nor false" if kind == "truth" else "is no date"
        seen = [i for i in here if words[i].casefold() not in TRUTHS or kind == "date"]
        raise refuse(int(np.isin(codes, seen).argmax()), f"{fault}, as the column held in training.")
    if kind in ("truth", "date"):
        return Cells(kind, np.full(len(codes), np.nan), order=order)
    names = sorted({words[i] for i in here})
    place = {name: i for i, name in enumerate(names)}
    at = np.array([*(-1 if gap else place[word] for word, gap in zip(words, gaps, strict=True)), -1], np.int64)
    return Cells("word", at[codes], names)


def _finite(cells: Cells, refuse: Callable[[int, str], ConfigError]) -> Cells:
    bad = np.isinf(cells.values)
    if bad.any():
        raise refuse(int(bad.argmax()), "is not finite; mend it or remove the line.")
    return cells


def _days(texts: Sequence[str], order: str | None) -> tuple[list[float], str | None, list[str]]:
    """Dates as days since 1970-01-01, their order, None where they are none, and a line where it was guessed."""
    first = [YEAR_FIRST.fullmatch(text) for text in texts]
    last = [YEAR_LAST.fullmatch(text) for text in texts]
    notes = []
    if all(first) and order in (None, "ymd"):
        order = "ymd"
    elif all(last) and order != "ymd":
        if order is None:
            day_first = any(int(found[1]) > 12 for found in last if found)
            month_first = any(int(found[3]) > 12 for found in last if found)
            points = any(found[2] == "." for found in last if found)
            order = "dmy" if day_first or (points and not month_first) else "mdy"
            if not day_first and not month_first:
                notes = [f"dates are read {'day' if order == 'dmy' else 'month'} first, a guess"]
    else:
        return [], None, []
    plain_ones = []
    for text, one, other in zip(texts, first, last, strict=True):
        found = one or other
        assert found is not None
        date = {"ymd": (1, 3, 4), "dmy": (4, 3, 1), "mdy": (4, 1, 3)}[order]
        year, month, day = (int(found[i]) for i in date)
        hour, minute, second = found[5] or "0", found[6] or "00", found[7] or "00"
        zone = re.search(r"(Z|[+-]\d{2}:?\d{2})$", text[found.start(5) :]) if found[5] else None
        clock = f"{int(hour):02d}:{minute}:{second}{zone[0] if zone else ''}"
        plain_ones.append(f"{year:04d}-{month:02d}-{day:02d}T{clock}")
    parsed = pd.to_datetime(pd.Series(plain_ones), format="ISO8601", utc=True, errors="coerce")
    if parsed.isna().any():
        return [], None, []
    return ((parsed.dt.tz_convert(None) - EPOCH) / DAY).tolist(), order, notes
