"""A table as it lies in a file: csv and its like, packed or not, or parquet; read by pandas."""

import csv
import io
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from launcher.core.errors import ConfigError
from launcher.data.table_cells import MISSING, comma_is_decimal, plain
from launcher.data.table_statistics import NUMBER
from launcher.data.table_text import (
    LOOKED_AT,
    PARQUET,
    SEPARATORS,
    check_encoding,
    content,
    decoded,
    recognised,
    separator,
)

# To the last bit the numbers that Python reads, which later versions of pandas give by default.
PRECISE: Any = {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}


@dataclass(frozen=True)
class Format:
    """How a table is written.

    Args:
        delimiter: One character between the columns, or `tab`; None: recognised.
        decimal: What a number has before its fraction, `.` or `,`; None: recognised.
        thousands: What a number has between its thousands; None: recognised.
        header: Whether the first line names the columns, which are called 0, 1, 2, ... else; None: as it looks,
            refused where it looks like a row.
        encoding: Of the text; None: recognised.
        missing: Texts that mean a gap, beside those that pandas knows.

    Raises:
        ConfigError: One is outside its range.
    """

    delimiter: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    header: bool | None = None
    encoding: str | None = None
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        delimiter = separator(self.delimiter)
        if self.decimal not in (".", ",", None) or (self.decimal is not None and self.decimal == delimiter):
            raise ConfigError(f"data.decimal: {self.decimal!r} is neither '.', ',' nor null, or data.delimiter too.")
        if self.thousands not in (".", ",", " ", "'", None) or (self.thousands and self.thousands == self.decimal):
            raise ConfigError(
                f"data.thousands: {self.thousands!r} is none of '.', ',', ' ', \"'\" and null, or data.decimal too."
            )
        if self.header not in (True, False, None):
            raise ConfigError(f"data.header: {self.header!r} is none of true, false and null.")
        check_encoding(self.encoding)


@dataclass
class Table:
    """The columns of a table, as pandas reads them.

    Attributes:
        names: Names of the columns.
        frame: The columns by name: numbers, truths, dates or texts.
        form: How it was written; of a text, the separator and the decimal sign that were recognised.
        place: The setting that named the file, and its path, for messages.
        text: The text, in which a message looks for the line; None of a parquet file.
        notes: Lines about what was guessed.
    """

    names: list[str]
    frame: pd.DataFrame
    form: Format
    place: str
    text: str | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frame)

    def texts(self, name: str) -> list[str]:
        """The cells of a column as texts, without white space around them; a gap is an empty one."""
        column = self.frame[name]
        return ["" if gap else str(value).strip() for gap, value in zip(column.isna(), column, strict=True)]

    def refuse(self, column: str, row: int, fault: str) -> ConfigError:
        """The error about a cell, which names its line."""
        if self.text is None:
            return ConfigError(f"{self.place}, row {row}, column {column!r}: {self.frame[column].iloc[row]!r} {fault}")
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.form.delimiter or ",")
        rows = (cells for cells in reader if cells)
        cells: list[str] = []
        for _ in range(row + 1 + (self.form.header is not False)):
            cells = next(rows)
        value = cells[self.names.index(column)].strip()
        return ConfigError(f"{self.place}, line {reader.line_num}, column {column!r}: {value!r} {fault}")

    def hint(self) -> str:
        """What is said where the columns are not parted."""
        first = self.names[0]
        found = next((one for one in SEPARATORS if one in first), None) if len(self.names) == 1 else None
        return "" if found is None else f" Its columns seem to be parted by {found!r}: set data.delimiter."


def read(path: Any, form: Format, target: str | None, setting: str) -> Table:
    """The table in a file. Empty lines are skipped, and white space around a cell.

    Args:
        path: The file: text with a separator, as it is or in gzip, bz2, xz or a zip of one file; or parquet.
        form: How it is written.
        target: The column whose texts are kept as they are written.
        setting: Which one named the file, for messages.

    Raises:
        ConfigError: No such file, none of these formats, no header, no rows, or a row of another length.
    """
    found = content(path, setting)
    if found.startswith(PARQUET):
        return _parquet(found, form, path, setting)
    text, notes = decoded(found, form.encoding, path, setting)
    del found
    delimiter = separator(form.delimiter) or recognised(text, form.decimal)
    form = replace(form, delimiter=delimiter)
    place = f"{setting}: {path}"
    first, header = _looked_at(text, form, place)
    table = Table(first[0], pd.DataFrame(), replace(form, header=header), place, text, notes)
    _check_rows(table, len(first[0]))
    decimal = form.decimal or ("," if form.thousands == "." else ".")
    table.frame = _frame(table, target, typed=decimal == ".")
    if decimal == "." and form.decimal is None and form.thousands is None and _has_commas(table):
        decimal, table.frame = ",", _frame(table, target, typed=False)
        table.notes.append("numbers have a decimal comma (data.decimal='.' takes commas for thousands)")
    table.form = replace(table.form, decimal=decimal)
    return table


def _looked_at(text: str, form: Format, place: str) -> tuple[list[list[str]], bool]:
    """The names of the columns and the first rows, and whether the first line has the names."""
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=form.delimiter or ",")
    try:
        for row in reader:
            if row:
                rows.append([value.strip() for value in row])
            if len(rows) > LOOKED_AT:
                break
    except csv.Error as error:
        raise ConfigError(f"{place}, line {reader.line_num}: {error}.") from error
    if not rows:
        raise ConfigError(f"{place} is empty; its first line must name the columns.")
    names = [str(i) for i in range(len(rows[0]))] if form.header is False else rows.pop(0)
    doubtful = form.header is None and _looks_like_a_row(names, rows, form.decimal)
    if not doubtful:
        _check_names(names, place)
    if not rows:
        raise ConfigError(f"{place} has a header ({', '.join(names)}) and no rows below it.")
    if doubtful:
        raise ConfigError(
            f"{place.partition(':')[0]}: the first line of {place.partition(': ')[2]} looks like a row and not like "
            f"names ({', '.join(names)[:80]}). data.header=false takes it for one and calls the columns 0 to "
            f"{len(names) - 1}; data.header=true takes it for names."
        )
    return [names, *rows], form.header is not False


def _check_names(names: list[str], place: str) -> None:
    """Names that are all different, else a ConfigError."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{place} has more than one column named {twice[0]!r}; give each its own name.")


def _looks_like_a_row(names: list[str], rows: list[list[str]], decimal: str | None) -> bool:
    """Whether the header has a number above every column of numbers, other than a count of the columns."""
    looked = [row for row in rows if len(row) == len(names)]
    is_number = [NUMBER.fullmatch(plain(name, decimal)) for name in names]
    numeric = [
        i for i in range(len(names)) if looked and all(NUMBER.fullmatch(plain(row[i], decimal)) for row in looked)
    ]
    counted = any(names == [str(i) for i in range(first, first + len(names))] for first in (0, 1))
    return bool(numeric) and all(is_number[i] for i in numeric) and not counted


def _check_rows(table: Table, width: int) -> None:
    """Every row as long as the first: pandas fills up short ones in silence."""
    reader = csv.reader(io.StringIO(table.text, newline=""), delimiter=table.form.delimiter or ",")
    try:
        wrong = next((row for row in reader if len(row) != width and row), None)
    except csv.Error as error:
        raise ConfigError(f"{table.place}, line {reader.line_num}: {error}.") from error
    if wrong is not None:
        words = f"line {reader.line_num} has {len(wrong)} columns, and the first {width}"
        raise ConfigError(f"{table.place}, {words}.{table.hint()}")


def _frame(table: Table, target: str | None, typed: bool) -> pd.DataFrame:
    """The columns; typed: numbers as pandas recognises them, to the last bit those that Python reads."""
    kinds: Any = dict.fromkeys([target], str) if target in table.names else {}
    try:
        return pd.read_csv(
            io.StringIO(table.text),
            sep=table.form.delimiter,
            header=0 if table.form.header is not False else None,
            names=table.names,
            index_col=False,
            dtype=kinds if typed else str,
            na_values=sorted({*MISSING, *table.form.missing}),
            keep_default_na=True,
            **PRECISE,
            low_memory=False,
            skipinitialspace=True,
        )
    except (pd.errors.ParserError, ValueError) as error:
        raise ConfigError(f"{table.place}: pandas cannot read it: {' '.join(str(error).split())}.") from error


def _has_commas(table: Table) -> bool:
    """Whether a column of texts is one of numbers with a decimal comma."""
    parted = table.form.delimiter == ","  # then 1,234 in quotes is rather a thousand
    texts = (table.frame[name] for name in table.names if table.frame[name].dtype.kind not in "iufbM")
    return any(comma_is_decimal(column.dropna().unique(), parted) for column in texts)


def _parquet(found: bytes, form: Format, path: str, setting: str) -> Table:
    try:
        frame = pd.read_parquet(io.BytesIO(found)).reset_index(drop=True)
    except ImportError as error:
        raise ConfigError(
            f"{setting}: {path} is parquet, which pandas reads by pyarrow: pip install pyarrow"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: {path} is parquet and cannot be read: {error}.") from error
    frame.columns = pd.Index([str(name) for name in frame.columns])
    if not len(frame) or not len(frame.columns):
        raise ConfigError(f"{setting}: {path} has {len(frame)} rows and {len(frame.columns)} columns; it needs both.")
    names = list(frame.columns)
    _check_names(names, f"{setting}: {path}")
    return Table(names, frame, replace(form, decimal=form.decimal or "."), f"{setting}: {path}")
