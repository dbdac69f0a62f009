"""A user's own table: numbers in columns under a header, one column of them the target."""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.data import Data, Others, TensorPart
from launcher.data.table import from_table
from launcher.errors import ConfigError

log = logging.getLogger(__name__)

MISSING = {"", "nan", "na", "n/a", "null"}


def load(
    path: str,
    target: str,
    task: str,
    delimiter: str,
    drop: Sequence[str],
    test: float,
    validation: float,
    split_seed: int,
) -> Data:
    """Read a table, split it, and standardise it by the training part.

    The first line names the columns. Each column but the target and those dropped is an input and holds
    numbers. The target is a number or, for a classification, any text; classes are in the order of their
    numbers or, for text, of the alphabet.

    Args:
        path: The file, UTF-8.
        target: Column to predict.
        task: `classification`, `regression`, or `auto`: a classification where the target is text, or whole
            numbers of at most 20 different values that come twice each on average.
        delimiter: One character between the columns.
        drop: Columns to leave out.
        test: Share of all rows for the test part, in (0, 1).
        validation: Share of the rest for the validation part, in (0, 1).
        split_seed: Seed of the split.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit; the message gives column and line.
    """
    if task not in ("auto", "classification", "regression"):
        raise ConfigError(f"data.task: {task!r} is unknown; pick auto, classification or regression.")
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise ConfigError(f"data.delimiter: {delimiter!r} is not one character, such as ',' or ';'.")
    if isinstance(drop, str) or not isinstance(drop, Sequence):
        raise ConfigError(f"data.drop: {drop!r} is not a list of columns, such as data.drop=[id,comment].")
    header, rows, lines = read(path, delimiter, "data.path")
    columns = ", ".join(header)
    if target is None:
        raise ConfigError(f"data.target: name the column of {path} to predict; it has: {columns}.")
    for setting, column in [("data.target", str(target)), *(("data.drop", str(column)) for column in drop)]:
        if column not in header:
            raise ConfigError(f"{setting}: {path} has no column {column!r}; it has: {columns}.")
    used = [c for c in header if c != str(target) and c not in {str(column) for column in drop}]
    if not used:
        raise ConfigError(f"data: {path} has no input column beside the target {target!r}; it has: {columns}.")

    refuse = _refusal("data.path", path, header, rows, lines)
    features = _features(header, rows, used, refuse)
    at = header.index(str(target))
    values = [row[at] for row in rows]
    for row, value in enumerate(values):
        if value.casefold() in MISSING:
            raise refuse(str(target), row, "is no target; fill it in or remove the line.")
    targets: np.ndarray = np.array(values, dtype=object)
    try:
        targets = np.array(values, dtype=np.float64)
    except ValueError:
        numeric = False
    else:
        numeric = True
    if task == "auto":
        distinct = len(np.unique(targets))
        whole = not numeric or bool((targets == np.floor(targets)).all())
        few = not numeric or (distinct <= 20 and 2 * distinct <= len(targets))
        task = "classification" if whole and few else "regression"
        log.info("%s: target %r with %d different values: %s", path, target, distinct, task)
    if task == "regression":
        targets = numbers(values, str(target), refuse)[:, None]
        data = from_table("csv", features, targets, None, test, validation, split_seed)
        return _with_reader(data, used, str(target), delimiter, False)
    classes, labels = np.unique(targets, return_inverse=True)
    names = [f"{value:.15g}" for value in classes] if numeric else [str(value) for value in classes]
    if len(names) < 2:
        raise ConfigError(
            f"data.target: column {target!r} of {path} is {names[0]!r} in all {len(rows)} rows; "
            "a classification needs at least two classes."
        )
    data = from_table("csv", features, labels, names, test, validation, split_seed)
    return _with_reader(data, used, str(target), delimiter, numeric)


def _with_reader(data: Data, columns: list[str], target: str, delimiter: str, numeric: bool) -> Data:
    """The source, and all that it takes to prepare another table in the same way."""
    numbers_of = {
        name: None if tensor is None else tensor.double().tolist()
        for name, tensor in (("mean", data.input_mean), ("std", data.input_std),
                             ("target_mean", data.target_mean), ("target_std", data.target_std))
    }  # fmt: skip
    reader = {"columns": columns, "target": target, "classes": data.class_names, "numeric_classes": numeric}
    return replace(
        data, reader={"_target_": "launcher.data.csv.read_alike", **reader, "delimiter": delimiter, **numbers_of}
    )


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
) -> Others:
    """Read another table and prepare it by the numbers of the training run, whatever its own are.

    Columns are found by name, in any order; further ones are left out.

    Args:
        path: The file, UTF-8, with a header.
        columns: Inputs, in the order that the model takes them.
        target: Column of the true values; it may be absent.
        classes: Names of the classes, in their order; None for a regression.
        numeric_classes: The classes are numbers: 1 and 1.0 are the same.
        delimiter: One character between the columns.
        mean: Of each input over the training part.
        std: Of each input over the training part.
        target_mean: Of a regression's target over the training part.
        target_std: Of a regression's target over the training part.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit, or a class was not in training.
    """
    header, rows, lines = read(path, delimiter, "input")
    for column in columns:
        if column not in header:
            raise ConfigError(
                f"input: {path} has no column {column!r}, which the model takes; it has: {', '.join(header)}."
            )
    refuse = _refusal("input", path, header, rows, lines)
    features = (_features(header, rows, columns, refuse) - np.array(mean)) / np.array(std)
    inputs, names = torch.from_numpy(features).float(), [str(row) for row in range(len(rows))]
    if target not in header:
        return Others(TensorPart(inputs, torch.zeros(len(rows), dtype=torch.int64)), names, False)
    values = [row[header.index(target)] for row in rows]
    if classes is None:
        assert target_mean is not None and target_std is not None
        wanted = (numbers(values, target, refuse)[:, None] - np.array(target_mean)) / np.array(target_std)
        return Others(TensorPart(inputs, torch.from_numpy(wanted).float()), names, True)
    labels = []
    for row, value in enumerate(values):
        try:
            labels.append(classes.index(f"{float(value):.15g}" if numeric_classes else value))
        except ValueError:
            raise refuse(target, row, f"is no class of the training run; those are: {', '.join(classes)}.") from None
    return Others(TensorPart(inputs, torch.tensor(labels)), names, True)


Refusal = Callable[[str, int, str], ConfigError]


def _refusal(setting: str, path: str, header: list[str], rows: list[list[str]], lines: list[int]) -> Refusal:
    """What makes the error about a value: (column, row, fault) to a ConfigError that names its line."""

    def refuse(column: str, row: int, fault: str) -> ConfigError:
        value = rows[row][header.index(column)]
        return ConfigError(f"{setting}: {path}, line {lines[row]}, column {column!r}: {value!r} {fault}")

    return refuse


def _features(header: list[str], rows: list[list[str]], columns: list[str], refuse: Refusal) -> np.ndarray:
    """The values of some columns, [rows, columns] float64."""
    features = np.empty((len(rows), len(columns)))
    for j, column in enumerate(columns):
        i = header.index(column)
        features[:, j] = numbers([row[i] for row in rows], column, refuse)
    return features


def read(path: Any, delimiter: str, setting: str) -> tuple[list[str], list[list[str]], list[int]]:
    """The names of the columns, the rows, and the line of the file on which each row ends.

    Empty lines are skipped, and white space around a value.

    Args:
        path: The file, UTF-8.
        delimiter: One character between the columns.
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
        raise ConfigError(f"{setting}: {path} is no text in UTF-8: {error}.") from error
    except csv.Error as error:
        raise ConfigError(f"{setting}: {path}, line {reader.line_num}: {error}.") from error
    if not rows:
        raise ConfigError(f"{setting}: {path} is empty; its first line must name the columns.")
    header = rows.pop(0)
    lines.pop(0)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ConfigError(f"{setting}: {path} has more than one column named {twice[0]!r}; give each its own name.")
    if not rows:
        raise ConfigError(f"{setting}: {path} has a header ({', '.join(header)}) and no rows below it.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ConfigError(
                f"{setting}: {path}, line {line} has {len(row)} columns, and the header has {len(header)}."
            )
    return header, rows, lines


def numbers(values: list[str], column: str, refuse: Refusal) -> np.ndarray:
    """The values of a column as finite float64 [n].

    Raises:
        ConfigError: One is missing, text, or not finite.
    """
    try:
        found = np.array(values, dtype=np.float64)
    except ValueError:
        for row, value in enumerate(values):
            if value.casefold() in MISSING:
                raise refuse(column, row, "is no number; fill it in or remove the line.") from None
            try:
                float(value)
            except ValueError:
                fault = f"is no number; encode the column as numbers or leave it out with data.drop=[{column}]."
                raise refuse(column, row, fault) from None
        raise
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise refuse(column, int(bad[0]), "is not finite; fill it in or remove the line.")
    return found
