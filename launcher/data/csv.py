"""A user's own table: numbers in columns under a header, one column of them the target."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.data.source import Data, Others
from launcher.data.table import (
    CONSTANT,
    NUMBER,
    check_task,
    classes_of,
    doubts,
    from_table,
    guess_task,
    standardise,
    told,
)

MISSING = {"", "nan", "-nan", "na", "n/a", "<na>", "#n/a", "#na", "null"}
UNNAMED = re.compile(r"(Unnamed: \d+(_\w+)?)?")  # a column that pandas wrote without a name, or named so
THOUSANDS = re.compile(r"[+-]?\d*([.,' \u00a0\u202f]\d+)+")  # or a decimal comma
SEPARATORS = ",;\t|"


def load(
    path: str,
    target: str,
    task: str,
    delimiter: str,
    decimal: str,
    header: bool | None,
    drop: Sequence[str],
    test: float,
    validation: float,
    split_seed: int,
) -> Data:
    """Read a table, split it, and standardise it by the training part.

    Each column but the target and those dropped is an input and holds numbers. The target is a number or, for a
    classification, any text; classes are in the order of their numbers or, for text, of the alphabet. A column without
    a name that numbers the rows, as pandas writes its index, is left out.

    Args:
        path: The file, UTF-8.
        target: Column to predict.
        task: `classification`, `regression`, or `auto`: a classification where the target is text, or whole
            numbers of at most 20 different values that come twice each on average.
        delimiter: One character between the columns.
        decimal: What a number has before its fraction, `.` or `,`.
        header: Whether the first line names the columns, which are called 0, 1, 2, ... else; None: as it looks,
            refused where it looks like a row.
        drop: Columns to leave out.
        test: Share of all rows for the test part, in (0, 1).
        validation: Share of the rest for the validation part, in (0, 1).
        split_seed: Seed of the split.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit; the message gives column and line.
    """
    check_task(task)
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise ConfigError(f"data.delimiter: {delimiter!r} is not one character, such as ',' or ';'.")
    if decimal not in (".", ",") or decimal == delimiter:
        raise ConfigError(f"data.decimal: {decimal!r} is neither '.' nor ',', or data.delimiter too.")
    if header not in (True, False, None):
        raise ConfigError(f"data.header: {header!r} is none of true, false and null.")
    if isinstance(drop, str) or not isinstance(drop, Sequence):
        raise ConfigError(f"data.drop: {drop!r} is not a list of columns, such as data.drop=[id,comment].")
    table = read(path, delimiter, decimal, header, "data.path")
    columns = ", ".join(table.header)
    if target is None:
        raise ConfigError(f"data.target: name the column of {path} to predict; it has: {columns}.")
    for setting, column in [("data.target", str(target)), *(("data.drop", str(column)) for column in drop)]:
        if column not in table.header:
            raise ConfigError(f"{setting}: {path} has no column {column!r}; it has: {columns}.{table.hint()}")
    target = str(target)
    used = [c for c in table.header if c != target and c not in {str(column) for column in drop}]
    notes = []
    for column in [*used]:
        unnamed = UNNAMED.fullmatch(column)
        if table.numbers_rows(column, bool(unnamed)):
            if unnamed and len(used) > 1:
                used.remove(column)
                notes.append(f"column {column!r} numbers the rows, as an index that pandas wrote: it is left out")
            else:
                notes.append(f"column {column!r} numbers the rows; where it says nothing, data.drop=[{column}]")
    if not used:
        raise ConfigError(f"data: {path} has no input column beside the target {target!r}; it has: {columns}.")
    features, values = table.features(used), table.column(target)
    for row, value in enumerate(values):
        if value.casefold() in MISSING:
            raise table.refuse(target, row, "is no target; fill it in or remove the line.")
    names, labels, numeric = classes_of(values, table.plain)
    whole = numeric and all(number == number.to_integral_value() for number in (Decimal(table.plain(n)) for n in names))
    if task == "auto":
        task = guess_task(len(names), len(values), whole) if numeric else "classification"
        notes.append(told(target, len(names), task) if numeric else f"target {target!r} is text: {len(names)} classes")
    if task == "regression":
        numbers = table.numbers(target, "data.task=classification takes each text for a class")
        data = from_table("csv", features, numbers[:, None], None, test, validation, split_seed)
    else:
        if len(names) < 2:
            raise ConfigError(
                f"data.target: column {target!r} of {path} is {names[0]!r} in all {len(values)} rows; "
                "a classification needs at least two classes."
            )
        spelt = len(set(values)) - len(names)
        notes += [f"target {target!r}: {spelt} classes are spelt in several ways, as 1 and 1.0"] if spelt else []
        data = from_table("csv", features, labels, names, test, validation, split_seed)
        notes += doubts(names)
    assert data.input_std is not None
    constant = [column for column, std in zip(used, data.input_std.tolist(), strict=True) if std == CONSTANT]
    if constant:
        notes.append(f"the same in every training row, and 0 for the model: {', '.join(map(repr, constant))}")
    if repeated := _repeated(data):
        notes.append(f"{repeated} rows of the validation and the test part are in the training part too")
    told_by = {"delimiter": delimiter, "decimal": decimal, "header": header}
    return replace(_with_reader(data, used, target, numeric, told_by), notes=notes)


def _repeated(data: Data) -> int:
    """Samples that are measured and were learned from as well."""

    def rows(part: Any) -> list[bytes]:
        both = torch.cat([part.inputs.double(), part.targets.double().view(len(part), -1)], 1)
        return [row.tobytes() for row in both.numpy()]

    seen = set(rows(data.train))
    return sum(row in seen for part in (data.validation, data.test) for row in rows(part))


def _with_reader(data: Data, columns: list[str], target: str, numeric: bool, told_by: dict[str, Any]) -> Data:
    """The source, and all that it takes to prepare another table in the same way."""
    numbers_of = {
        name: None if tensor is None else tensor.double().tolist()
        for name, tensor in (("mean", data.input_mean), ("std", data.input_std),
                             ("target_mean", data.target_mean), ("target_std", data.target_std))
    }  # fmt: skip
    reader = {"columns": columns, "target": target, "classes": data.class_names, "numeric_classes": numeric}
    return replace(data, reader={"_target_": "launcher.data.csv.read_alike", **reader, **told_by, **numbers_of})


def read_alike(
    path: str,
    columns: list[str],
    target: str,
    classes: list[str] | None,
    numeric_classes: bool,
    delimiter: str,
    mean: list[float],
    std: list[float],
    target_mean: list[float] | None,
    target_std: list[float] | None,
    decimal: str = ".",
    header: bool | None = None,
) -> Others:
    """Read another table and prepare it by the numbers of the training run, whatever its own are.

    Columns are found by name, in any order; further ones are left out.

    Args:
        path: The file, UTF-8, with a header where the run's had one.
        columns: Inputs, in the order that the model takes them.
        target: Column of the true values; it may be absent.
        classes: Names of the classes, in their order; None for a regression.
        numeric_classes: The classes are numbers: 1 and 1.0 are the same.
        delimiter: One character between the columns.
        mean: Of each input over the training part.
        std: Of each input over the training part.
        target_mean: Of a regression's target over the training part.
        target_std: Of a regression's target over the training part.
        decimal: What a number has before its fraction.
        header: As the run's setting.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit, or a class was not in training.
    """
    table = read(path, delimiter, decimal, header, "input")
    for column in columns:
        if column not in table.header:
            raise ConfigError(
                f"input: {path} has no column {column!r}, which the model takes; it has: {', '.join(table.header)}."
                + table.hint()
            )
    inputs = torch.from_numpy(standardise(table.features(columns), mean, std)).float()
    names = [str(row) for row in range(len(table.rows))]
    if target not in table.header:
        return Others(TensorSplit(inputs, torch.zeros(len(names), dtype=torch.int64)), names, False)
    if classes is None:
        wanted = standardise(table.numbers(target)[:, None], target_mean, target_std)
        return Others(TensorSplit(inputs, torch.from_numpy(wanted)), names, True)
    number_of: dict[Any, int] = {Decimal(table.plain(c)) if numeric_classes else c: i for i, c in enumerate(classes)}
    labels = []
    for row, value in enumerate(table.column(target)):
        number = NUMBER.fullmatch(table.plain(value))
        label = number_of.get((Decimal(number[0]) if number else None) if numeric_classes else value)
        if label is None:
            raise table.refuse(target, row, f"is no class of the training run; those are: {', '.join(classes)}.")
        labels.append(label)
    return Others(TensorSplit(inputs, torch.tensor(labels)), names, True)


@dataclass
class Table:
    """The texts of a table.

    Attributes:
        header: Names of the columns.
        rows: Without white space around the values.
        lines: The line of the file on which each row ends.
        delimiter: One character between the columns.
        decimal: What a number has before its fraction.
        place: The setting that named the file, and its path, for messages.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    delimiter: str
    decimal: str
    place: str

    def column(self, name: str) -> list[str]:
        """The values of a column."""
        at = self.header.index(name)
        return [row[at] for row in self.rows]

    def plain(self, text: str) -> str:
        """A number as Python writes it; any other text stays none."""
        return text if self.decimal == "." else text.replace(".", " ").replace(",", ".")

    def numbers(self, name: str, otherwise: str | None = None) -> np.ndarray:
        """The values of a column as finite float64 [n].

        Args:
            name: Of the column.
            otherwise: What to do where it holds text.

        Raises:
            ConfigError: One is missing, text, or not finite.
        """
        values = [self.plain(value) for value in self.column(name)]
        whole = "".join(values)
        try:
            if "_" in whole or not whole.isascii():  # which Python takes for digits of its own
                raise ValueError
            found = np.array(values, dtype=np.float64)
        except ValueError:
            row = next(row for row, value in enumerate(values) if not NUMBER.fullmatch(value))
            if values[row].casefold() in MISSING:
                raise self.refuse(name, row, "is no number; fill it in or remove the line.") from None
            words = otherwise or f"encode the column as numbers or leave it out with data.drop=[{name}]"
            fault = f"is no number; {words}."
            if THOUSANDS.fullmatch(self.rows[row][self.header.index(name)]):
                fault = "is no number; write thousands without separators, or set data.decimal to ',' or '.'."
            raise self.refuse(name, row, fault) from None
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            raise self.refuse(name, int(bad[0]), "is not finite; fill it in or remove the line.")
        return found

    def features(self, names: list[str]) -> np.ndarray:
        """The values of some columns, [rows, columns] float64."""
        return np.stack([self.numbers(name) for name in names], 1)

    def refuse(self, column: str, row: int, fault: str) -> ConfigError:
        """The error about a value, which names its line."""
        value = self.rows[row][self.header.index(column)]
        return ConfigError(f"{self.place}, line {self.lines[row]}, column {column!r}: {value!r} {fault}")

    def numbers_rows(self, name: str, any_order: bool) -> bool:
        """Whether a column counts up by one from row to row; or where any order will do, has no whole number twice."""
        values = self.column(name)
        if not all(value.isascii() and value.isdigit() for value in values):
            return False
        whole = [int(value) for value in values]
        return len(set(whole)) == len(whole) if any_order else whole == list(range(whole[0], whole[0] + len(whole)))

    def looks_like_a_row(self) -> bool:
        """Whether the header has a number above every column of numbers, other than a count of the columns."""
        looked = [row for row in self.rows[:100] if len(row) == len(self.header)]
        is_number = [NUMBER.fullmatch(self.plain(name)) for name in self.header]
        numeric = [
            i for i in range(len(self.header)) if looked and all(NUMBER.fullmatch(self.plain(row[i])) for row in looked)
        ]
        counted = any(self.header == [str(i) for i in range(first, first + len(self.header))] for first in (0, 1))
        return bool(numeric) and all(is_number[i] for i in numeric) and not counted

    def hint(self) -> str:
        """What is said where the columns are not parted."""
        found = next((one for one in SEPARATORS if one in self.header[0]), None) if len(self.header) == 1 else None
        return "" if found is None else f" Its columns seem to be parted by {found!r}: set data.delimiter."


def read(path: Any, delimiter: str, decimal: str, header: bool | None, setting: str) -> Table:
    """The table in a file. Empty lines are skipped, and white space around a value.

    Args:
        path: The file, UTF-8.
        delimiter: One character between the columns.
        decimal: What a number has before its fraction.
        header: Whether the first line names the columns; None: as it looks.
        setting: Which one named the file, for messages.

    Raises:
        ConfigError: No path, no such file, no text in UTF-8, no header, no rows, or a row of another length.
    """
    if not path or not isinstance(path, str):
        raise ConfigError(f"{setting}: {path!r} is no file; name a table, as in {setting}=table.csv.")
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        # utf-8-sig drops the mark that spreadsheets put first, which would become part of the first name.
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if row:
                    rows.append([value.strip() for value in row])
                    lines.append(reader.line_num)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{setting}: {path} is no text in UTF-8: {error}. Save it as UTF-8.") from error
    except csv.Error as error:
        raise ConfigError(f"{setting}: {path}, line {reader.line_num}: {error}.") from error
    if not rows:
        raise ConfigError(f"{setting}: {path} is empty; its first line must name the columns.")
    names = [str(i) for i in range(len(rows[0]))] if header is False else rows.pop(0)
    table = Table(names, rows, lines[len(lines) - len(rows) :], delimiter, decimal, f"{setting}: {path}")
    twice = sorted({name for name in names if names.count(name) > 1})
    doubtful = header is None and table.looks_like_a_row()
    if twice and not doubtful:
        raise ConfigError(f"{setting}: {path} has more than one column named {twice[0]!r}; give each its own name.")
    if not rows:
        raise ConfigError(f"{setting}: {path} has a header ({', '.join(names)}) and no rows below it.")
    for row, line in zip(rows, table.lines, strict=True):
        if len(row) != len(names):
            words = f"line {line} has {len(row)} columns, and the first {len(names)}"
            raise ConfigError(f"{setting}: {path}, {words}.{table.hint()}")
    if doubtful:
        raise ConfigError(
            f"{setting}: the first line of {path} looks like a row and not like names ({', '.join(names)[:80]}). "
            f"data.header=false takes it for one and calls the columns 0 to {len(names) - 1}; data.header=true takes "
            "it for names."
        )
    return table
