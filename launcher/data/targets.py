"""A column of a Hugging Face dataset as targets: which task it is, and classes, labels or numbers."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from launcher.core.errors import ConfigError
from launcher.data.table_statistics import doubts, guess_task, told


def read_targets(
    sets: Mapping[str, Any], columns: Sequence[str], task: str
) -> tuple[dict[str, np.ndarray], str, list[str] | None, list[str]]:
    """The targets of each split, what they are, the names of the classes, and lines for the log.

    Several columns are the numbers, or the labels of 0 and 1, of a vector.

    Returns:
        Split to [n] int64 classes and their names; or split to [n, d] float64 numbers, and no names.

    Raises:
        ConfigError: A target is missing, is of no kind that the task can predict, or of a class that training lacks.
    """
    if len(columns) > 1:
        return _of_several(sets, columns, task)
    (column,) = columns
    values = {split: _cells(dataset, column, split) for split, dataset in sets.items()}
    feature, notes = sets["train"].features[column], list[str]()
    if task == "auto":
        task, notes = _guess(column, values, getattr(feature, "names", None))
    if task != "classification":
        return {split: _numbers(column, split, values, task, feature) for split in values}, task, None, notes
    values, classes = _classes(sets, column, values)
    return values, task, classes, [*notes, *doubts(classes)]


def _of_several(
    sets: Mapping[str, Any], columns: Sequence[str], task: str
) -> tuple[dict[str, np.ndarray], str, None, list[str]]:
    if task == "classification":
        raise ConfigError(
            f"data.target: {', '.join(columns)} are several columns, and a classification has one class per sample. "
            "Name one column, or use data.task=multilabel for columns of 0 and 1."
        )
    values = {}
    for split, dataset in sets.items():
        cells = [_cells(dataset, column, split) for column in columns]
        for column, one in zip(columns, cells, strict=True):
            if one.ndim > 1 or one.dtype.kind not in "fiub":
                raise ConfigError(f"data.target: column {column!r} of {split} is not one number per row.")
        values[split] = np.stack([one.astype(np.float64) for one in cells], 1)
    named, notes = ", ".join(columns), list[str]()
    if task == "auto":
        task, notes = _guess(named, values, None)
    found = {split: _numbers(named, split, values, task, "numbers") for split in values}
    return found, task, None, notes


def _cells(dataset: Any, column: str, split: str) -> np.ndarray:
    """The values of a column, none of which is missing."""
    cells = dataset.select_columns([column]).with_format("arrow")[:].column(0)
    if cells.null_count:
        raise ConfigError(f"data.target: {cells.null_count} rows of {split} have no {column!r}; remove them.")
    try:
        return np.array(cells.to_pylist() if "list" in str(cells.type) else cells.to_numpy())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"data.target: column {column!r} holds lists of different lengths.") from error


def _guess(column: str, values: Mapping[str, np.ndarray], named: list[str] | None) -> tuple[str, list[str]]:
    """What `data.task=auto` takes a column for, and a line for the log."""
    train = values["train"]
    if train.ndim > 1:
        several = train.ndim == 2 and all(
            rows.dtype.kind in "iufb" and np.isin(rows, (0, 1)).all() for rows in values.values()
        )
        task = "multilabel" if several else "regression"
        return task, [f"target {column!r} holds vectors: a {task}" + ", of 0 and 1" * several]
    if named is not None or train.dtype.kind not in "iuf":
        return "classification", []
    distinct = np.unique(train)
    whole = train.dtype.kind in "iu" or bool((distinct == np.floor(distinct)).all())
    task = guess_task(len(distinct), len(train), whole)
    return task, [told(column, len(distinct), task)]


def _numbers(column: str, split: str, values: Mapping[str, np.ndarray], task: str, feature: Any) -> np.ndarray:
    """[n, d] float64 of a split, to predict or, of a multilabel task, 0 and 1."""
    rows = values[split]
    if rows.ndim > 2 or rows.dtype.kind not in "fiub" or rows.shape[1:] != values["train"].shape[1:]:
        raise ConfigError(
            f"data.target: column {column!r} holds {feature} and no numbers to predict; data.task={task} needs "
            "numbers, or vectors of one length."
        )
    numbers = rows.astype(np.float64).reshape(len(rows), -1)
    if not np.isfinite(numbers).all():
        raise ConfigError(f"data.target: column {column!r} of {split} has a value that is not finite.")
    if task == "multilabel" and not np.isin(numbers, (0, 1)).all():
        raise ConfigError(
            f"data.target: column {column!r} of {split} has other values than 0 and 1, which "
            "data.task=multilabel takes; data.task=regression takes numbers."
        )
    return numbers


def _classes(
    sets: Mapping[str, Any], column: str, values: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The classes of each split, [n] int64, and their names."""
    feature, train = sets["train"].features[column], values["train"]
    named = getattr(feature, "names", None)
    plain = train.dtype.kind in "fiubU" or all(isinstance(value, str | Decimal) for value in train.flat)
    if train.ndim > 1 or not plain:
        raise ConfigError(
            f"data.target: column {column!r} holds {feature} and no classes; data.task=multilabel takes vectors of 0 "
            "and 1, data.task=regression numbers."
        )
    known = np.unique(train) if named is None else np.arange(len(named))
    found = {}
    for split, rows in values.items():
        own = getattr(sets[split].features[column], "names", None)
        if own != named:  # each split may number the names in its own way
            if own is None or named is None or set(own) - set(named):
                raise ConfigError(
                    f"data.target: column {column!r} of {split} has other classes ({own}) than train ({named})."
                )
            rows = np.where(rows < 0, rows, np.array([named.index(name) for name in own])[rows])
        strange = ~np.isin(rows, known)
        if strange.any():
            row = int(strange.argmax())
            raise ConfigError(
                f"data.target: row {row} of {split} has {column!r} = {rows[row].tolist()!r}, which is none of the "
                f"{len(known)} classes (-1 is for a row without a label); data.task=regression takes numbers."
            )
        found[split] = np.searchsorted(known, rows).astype(np.int64)
    if len(known) < 2:
        raise ConfigError(f"data.target: {column!r} has one class, {known.tolist()[0]!r}; at least two are needed.")
    return found, [str(name) for name in (known.tolist() if named is None else named)]
