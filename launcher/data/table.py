"""A person's own table: numbers, words, dates and truths in columns, with gaps, one column of them the target."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import torch

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.data.arguments import check_flag, check_unused, check_whole
from launcher.data.source import Data, Others
from launcher.data.splitting import split_three
from launcher.data.table_cells import Cells, gap_texts, plain, read_cells, reader_of_numbers
from launcher.data.table_columns import Column, fit, idle, named_in
from launcher.data.table_file import Format, Table, read
from launcher.data.table_statistics import (
    CODE,
    CONSTANT,
    NUMBER,
    check_task,
    classes_of,
    doubts,
    from_splits,
    guess_task,
    standardise,
    told,
)

OF_TEXT = ("delimiter", "encoding", "header")  # of `Format`: what a file that is no text has of its own
UNNAMED = re.compile(r"(Unnamed: \d+(_\w+)?)?")  # a column that pandas wrote without a name, or named so
MANY = 1000  # different numbers of a target that are no classes, however often each comes
LEFT_OUT = {
    "empty": "without a value in the training split",
    "constant": "the same in every training row",
    "identifier": "numbering or naming the rows",
    "text": "texts",
}


def load(
    path: str,
    target: str,
    task: str,
    delimiter: str | None,
    decimal: str | None,
    header: bool | None,
    drop: Sequence[str],
    test: float,
    validation: float,
    split_seed: int,
    thousands: str | None = None,
    encoding: str | None = None,
    missing: Sequence[str] = (),
    keep: Sequence[str] = (),
    leave_out: bool = True,
    categories: int = 50,
) -> Data:
    """Read a table, split it, and turn each column into inputs by the training split alone.

    Numbers are standardised, and so is the target of a regression. Each of the frequent words of a column becomes an
    input of 0 and 1, dates become days and their place in the year, the week and the day, truths 0 and 1. A gap is
    filled with the median, and an input says where gaps are. Classes are in the order of their numbers or, for text,
    of the alphabet.

    Args:
        path: The file: text with a separator, as it is or in gzip, bz2, xz or a zip of one file; or parquet.
        target: Column to predict.
        task: `classification`, `regression`, or `auto`: a classification where the target is text, or whole
            numbers of at most 20 different values that come twice each on average.
        delimiter: As for `Format`, like the next two.
        decimal: What a number has before its fraction.
        header: Whether the first line names the columns.
        drop: Columns to leave out.
        test: Share of all rows for the test split, in (0, 1).
        validation: Share of the rest for the validation split, in (0, 1).
        split_seed: Seed of the split.
        thousands: As for `Format`, like the next two.
        encoding: Of the text.
        missing: Texts that mean a gap.
        keep: Columns that are inputs though nothing seems to be learned from them.
        leave_out: Whether constant columns, and those that number or name the rows, are no inputs.
        categories: Different words of a column that become inputs of their own at most, >= 1.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit; the message gives column and line.
    """
    check_task(task)
    for setting, names in (("data.drop", drop), ("data.keep", keep), ("data.missing", missing)):
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ConfigError(f"{setting}: {names!r} is not a list, such as {setting}=[id,comment].")
    form = Format(delimiter, decimal, thousands, header, encoding, tuple(map(str, missing)))
    most = check_whole("data.categories", categories, "number of inputs; it must be an integer >= 1")
    choice = Choice([*map(str, drop)], [*map(str, keep)], check_flag("data.leave_out", leave_out), most)
    table = read(path, form, None if target is None else str(target), "data.path")
    columns = ", ".join(table.names)
    if target is None:
        raise ConfigError(f"data.target: name the column of {path} to predict; it has: {columns}.")
    target = str(target)
    named = [
        ("data.target", target),
        *(("data.drop", c) for c in choice.drop),
        *(("data.keep", c) for c in choice.keep),
    ]
    for setting, column in named:
        if column not in table.names:
            raise ConfigError(f"{setting}: {path} has no column {column!r}; it has: {columns}.{table.hint()}")
    _check_choice(choice, target)
    if table.text is None:
        check_unused({key: getattr(form, key) for key in OF_TEXT}, f"{path} is parquet, which says that itself")
    found = _read_target(table, target, task)
    labels = None if found.classes is None else torch.from_numpy(found.values)
    cells = {name: _cells(table, name) for name in table.names if name != target and name not in choice.drop}
    if not cells:
        raise ConfigError(f"data: {path} has no input column beside the target {target!r}; it has: {columns}.")
    indices = split_three(len(table), test, validation, split_seed, labels)
    plan, matrices, notes = _inputs(cells, choice, indices[0].numpy())
    if not plan:
        raise ConfigError(f"data: nothing can be learned from {path}: {'; '.join(notes)}.")
    marks = np.array([mark for column in plan for mark in column.marks])
    data = from_splits("table", np.concatenate(matrices, 1), found.values, found.classes, indices, marks)
    notes = [*table.notes, *notes, *found.notes, *_strange(data, plan)]
    return replace(_with_reader(data, plan, target, found.numeric, table.form), notes=notes)


@dataclass(frozen=True)
class Choice:
    """Which columns become inputs: those named to be dropped and kept, and what is done with the others."""

    drop: list[str]
    keep: list[str]
    leave_out: bool
    categories: int


def _check_choice(choice: Choice, target: str) -> None:
    """Refuse columns that are to be two things at once, else a ConfigError."""
    for setting, columns in (("data.drop", choice.drop), ("data.keep", choice.keep)):
        if target in columns:
            raise ConfigError(
                f"{setting}: {target!r} is data.target, which is no input anyway. Take it out of the list."
            )
    if both := [name for name in choice.keep if name in choice.drop]:
        raise ConfigError(f"data.keep, data.drop: both name {both[0]!r}. Take it out of one of them.")


@dataclass
class Target:
    """The target of every row: [n] int64 classes with their names, or [n, 1] float64 and none."""

    values: np.ndarray
    classes: list[str] | None
    numeric: bool  # the classes are numbers
    notes: list[str]


def _read_target(table: Table, target: str, task: str) -> Target:
    """The target, which has no gap, and lines about what was guessed of it."""
    texts = table.texts(target)
    gone = gap_texts(table.form.missing)
    if gaps := [row for row, text in enumerate(texts) if text.casefold() in gone]:
        more = f", and {len(gaps) - 1:,} more of the {len(table):,} rows have none" if len(gaps) > 1 else ""
        raise table.refuse(target, gaps[0], f"is no target{more}; fill it in or remove the line{'s' * bool(more)}.")
    if task == "auto" and (distinct := _many_numbers(table, texts)):
        cells = _cells(table, target, "number")
        return Target(cells.values[:, None], None, False, [told(target, distinct, "regression")])
    names, labels, numeric = classes_of(texts, lambda text: plain(text, table.form.decimal))
    notes = []
    if task == "auto":
        task, note = _guess(table, target, names, numeric)
        notes.append(note)
    if task == "regression":
        cells = _cells(table, target, "number", "data.task=classification takes each text for a class")
        return Target(cells.values[:, None], None, False, notes)
    if len(names) < 2:
        raise ConfigError(
            f"data.target: column {target!r} of {table.place.partition(': ')[2]} is {names[0]!r} in all {len(table)} "
            "rows; a classification needs at least two classes."
        )
    spelt = len(set(texts)) - len(names)
    notes += [f"target {target!r}: {spelt} classes are spelt in several ways, as 1 and 1.0"] if spelt else []
    return Target(labels, names, numeric, [*notes, *doubts(names)])


def _many_numbers(table: Table, texts: Sequence[str]) -> int:
    """How many different numbers a target has, where they are too many to be classes; else 0.

    Comparing 327,000 of them exactly, as classes are, took 9 of 15 seconds.
    """
    different = set(texts)
    if len(different) <= MANY or any(CODE.match(text) for text in different):
        return 0
    number = reader_of_numbers(table.form.decimal, table.form.thousands)
    values = {number(text) for text in different}
    return 0 if None in values or len(values) <= MANY else len(values)


def _guess(table: Table, target: str, names: list[str], numeric: bool) -> tuple[str, str]:
    """What `data.task=auto` takes the target for, and the line about it."""
    if not numeric:
        number = reader_of_numbers(table.form.decimal, table.form.thousands)
        values = [number(name) for name in names]
        if any(value is None for value in values) or all(name.isdigit() for name in names):  # such as 007
            return "classification", f"target {target!r} is text: {len(names)} classes"
        whole = all(value is not None and value.is_integer() for value in values)
    else:
        exact = (Decimal(plain(name, table.form.decimal)) for name in names)
        whole = all(value == value.to_integral_value() for value in exact)
    task = guess_task(len(names), len(table), whole)
    return task, told(target, len(names), task)


def _cells(
    table: Table, name: str, kind: str | None = None, mend: str | None = None, order: str | None = None
) -> Cells:
    """What a column holds, and errors that name its line."""
    to_mend = (
        mend or f"mend it, name it as a gap in data.missing, or leave the column out: {named_in('data.drop', [name])}"
    )

    def refuse(row: int, fault: str) -> ConfigError:
        return table.refuse(name, row, fault if fault.endswith(".") else f"{fault}; {to_mend}.")

    number = reader_of_numbers(table.form.decimal, table.form.thousands)
    return read_cells(table.frame[name], number, table.form.missing, refuse, kind, order)


def _inputs(
    found: dict[str, Cells], choice: Choice, train: np.ndarray
) -> tuple[list[Column], list[np.ndarray], list[str]]:
    """What each column becomes, the inputs [n, k] float64 that it becomes, and lines for the log."""
    plan: list[Column] = []
    matrices: list[np.ndarray] = []
    notes: list[str] = []
    unfit: dict[str, list[str]] = {}
    for name, cells in found.items():
        notes += [f"column {name!r}: {note}" for note in cells.notes]
        if UNNAMED.fullmatch(name) and _numbers_rows(cells) and name not in choice.keep and len(found) > 1:
            notes.append(f"column {name!r} numbers the rows, as an index that pandas wrote: it is left out")
            continue
        why = idle(cells, train)
        if why == "empty" or (why and choice.leave_out and name not in choice.keep):
            unfit.setdefault(why, []).append(name)
            continue
        if why == "identifier" and cells.kind == "number":
            notes.append(f"column {name!r} numbers the rows; where it says nothing, {named_in('data.drop', [name])}")
        column = fit(name, cells, train, choice.categories)
        plan.append(column)
        matrices.append(column.matrix(cells))
    if not plan and unfit.get("identifier"):  # the only inputs there are
        return _inputs(found, replace(choice, keep=[*choice.keep, *unfit["identifier"]]), train)
    for why, columns in unfit.items():
        advice = "" if why == "empty" else f" ({named_in('data.keep', columns)} keeps them)"
        if why == "text":
            words = f"data=huggingface {named_in('data.input', columns[:1])} model=encoder"
            advice = f" (to learn from one, say {words} in place of data=table)"
        notes.append(f"left out, {LEFT_OUT[why]}: {', '.join(map(repr, columns))}{advice}")
    return plan, matrices, [*notes, *_told(plan)]


def _numbers_rows(cells: Cells) -> bool:
    """Whether no whole number comes twice, and there is nothing else."""
    values = cells.values
    return cells.kind == "number" and bool((values % 1 == 0).all()) and len(np.unique(values)) == len(values)


def _told(plan: Sequence[Column]) -> list[str]:
    """Lines about the columns that are not numbers as they stand."""
    words = [f"{c.column!r} ({len(c.values)}{' and others' * c.other})" for c in plan if c.kind == "word"]
    dates = [
        f"{c.column!r}" + f" (place in the {', '.join(c.cycles)})" * bool(c.cycles) for c in plan if c.kind == "date"
    ]
    flagged = [repr(c.column) for c in plan if c.flag]
    return [
        *[f"words, an input of 0 and 1 for each: {', '.join(words)}"] * bool(words),
        *[f"dates, as days since 1970: {', '.join(dates)}"] * bool(dates),
        *[f"gaps, filled in and told by an input each: {', '.join(flagged)}"] * bool(flagged),
    ]


def _strange(data: Data, plan: Sequence[Column]) -> list[str]:
    """Lines about inputs that do not vary, and rows that are learned from and measured."""
    assert data.input_std is not None
    names = [name for column in plan for name in column.inputs]
    constant = [name for name, std in zip(names, data.input_std.tolist(), strict=True) if std == CONSTANT]
    notes = [f"the same in every training row, and 0 for the model: {', '.join(map(repr, constant))}"] * bool(constant)
    if repeated := _repeated(data):
        notes.append(f"{repeated} rows of the validation and the test split are in the training split too")
    return notes


def _repeated(data: Data) -> int:
    """Samples that are measured and were learned from as well."""

    def rows(split: Any) -> np.ndarray:
        both = torch.cat([split.inputs.double(), split.targets.double().view(len(split), -1)], 1)
        found: np.ndarray = pd.util.hash_pandas_object(pd.DataFrame(both.numpy()), index=False).to_numpy()
        return found

    seen = rows(data.train)
    return sum(int(np.isin(rows(split), seen).sum()) for split in (data.validation, data.test))


def _with_reader(data: Data, plan: Sequence[Column], target: str, numeric: bool, form: Format) -> Data:
    """The source, and all that it takes to prepare another table in the same way."""
    numbers_of = {
        name: None if tensor is None else tensor.double().tolist()
        for name, tensor in (("mean", data.input_mean), ("std", data.input_std),
                             ("target_mean", data.target_mean), ("target_std", data.target_std))
    }  # fmt: skip
    reader = {
        "columns": [column.column for column in plan],
        "target": target,
        "classes": data.class_names,
        "numeric_classes": numeric,
        "plan": [{**asdict(column), "inputs": column.inputs} for column in plan],
    }
    told_by = {**asdict(form), "missing": list(form.missing)}
    return replace(data, reader={"_target_": "launcher.data.table.read_alike", **reader, **told_by, **numbers_of})


def read_alike(
    path: str,
    columns: list[str],
    target: str,
    classes: list[str] | None,
    numeric_classes: bool,
    delimiter: str | None,
    mean: list[float],
    std: list[float],
    target_mean: list[float] | None,
    target_std: list[float] | None,
    decimal: str = ".",
    header: bool | None = None,
    plan: Sequence[dict[str, Any]] | None = None,
    thousands: str | None = None,
    encoding: str | None = None,
    missing: Sequence[str] = (),
) -> Others:
    """Read another table and prepare it by what was fitted in the training run, whatever its own values are.

    Columns are found by name, in any order; further ones are left out. A word that training had not has no input of
    its own, and a gap is filled as there.

    Args:
        path: The file, with a header where the run's had one.
        columns: Columns that become inputs, in their order.
        target: Column of the true values; it may be absent.
        classes: Names of the classes, in their order; None for a regression.
        numeric_classes: The classes are numbers: 1 and 1.0 are the same.
        delimiter: As for `Format`.
        mean: Of each input over the training split.
        std: What each input is divided by.
        target_mean: Of a regression's target over the training split.
        target_std: Of a regression's target over the training split.
        decimal: As for `Format`.
        header: As for `Format`.
        plan: What each column becomes, as for `Column`; None: a number without gaps, as in runs of data=csv.
        thousands: As for `Format`, like the next two.
        encoding: Of the text.
        missing: Texts that mean a gap.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit, or a class was not in training.
    """
    form = Format(delimiter, decimal, thousands, header, encoding, tuple(missing))
    table = read(path, form, target, "input")
    for name in columns:
        if name not in table.names:
            raise ConfigError(
                f"input: {path} has no column {name!r}, which the model takes; it has: {', '.join(table.names)}."
                + table.hint()
            )
    steps = [Column(**{key: one[key] for key in one if key != "inputs"}) for one in plan or ()]
    features = []
    for column in steps or [Column(name, "number") for name in columns]:
        cells = _cells(table, column.column, column.kind, order=column.order)
        if plan is None and cells.gaps.any():
            raise table.refuse(column.column, int(cells.gaps.argmax()), "is no number; fill it in or remove the line.")
        features.append(column.matrix(cells))
    inputs = torch.from_numpy(standardise(np.concatenate(features, 1), mean, std)).float()
    names = [str(row) for row in range(len(table))]
    if target not in table.names:
        return Others(TensorSplit(inputs, torch.zeros(len(names), dtype=torch.int64)), names, False)
    if classes is None:
        cells = _cells(table, target, "number")
        if cells.gaps.any():
            raise table.refuse(target, int(cells.gaps.argmax()), "is no target; fill it in or remove the line.")
        wanted = standardise(cells.values[:, None], target_mean, target_std)
        return Others(TensorSplit(inputs, torch.from_numpy(wanted)), names, True)
    return Others(TensorSplit(inputs, torch.tensor(_labels(table, target, classes, numeric_classes))), names, True)


def _labels(table: Table, target: str, classes: list[str], numeric: bool) -> list[int]:
    """The place of each row's class among those of the training run."""
    decimal = table.form.decimal
    number_of: dict[Any, int] = {Decimal(plain(c, decimal)) if numeric else c: i for i, c in enumerate(classes)}
    labels = []
    for row, value in enumerate(table.texts(target)):
        number = NUMBER.fullmatch(plain(value, decimal))
        label = number_of.get((Decimal(number[0]) if number else None) if numeric else value)
        if label is None:
            raise table.refuse(target, row, f"is no class of the training run; those are: {', '.join(classes)}.")
        labels.append(label)
    return labels
