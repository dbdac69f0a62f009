"""Tables of numbers: which task a target is, classes in their order, and columns standardised by the training split."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.data.source import Data
from launcher.data.splitting import split_three

TASKS = ("auto", "classification", "regression")
FEW = 20  # different whole numbers up to which `auto` takes a target for classes
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
CODE = re.compile(r"[+-]?0\d")  # 007 is the name of something, and no number
# Deviation of a column that does not vary in training: by it every value becomes 0, as nothing was learned about it.
CONSTANT = float(np.finfo(np.float64).max)
MARK = 0.5  # deviation that a column of 0 and 1 is divided by: that of one that is 1 as often as 0
ROUNDING = 4 * float(np.finfo(np.float64).eps)  # a column that varies by less of its size is constant


def check_task(task: Any, tasks: Sequence[str] = TASKS) -> None:
    """A task that the source knows, else a ConfigError."""
    if task not in tasks:
        raise ConfigError(f"data.task: {task!r} is unknown; pick {', '.join(tasks[:-1])} or {tasks[-1]}.")


def guess_task(distinct: int, rows: int, whole: bool) -> str:
    """What `data.task=auto` takes a target of numbers for.

    Args:
        distinct: Different values.
        rows: All of them.
        whole: Whether each is a whole number.

    Returns:
        `classification` for at most FEW different whole numbers that come twice each on average, else `regression`.
    """
    return "classification" if whole and distinct <= FEW and 2 * distinct <= rows else "regression"


def told(target: str, distinct: int, task: str) -> str:
    """The line about a guess."""
    other = {"classification": "regression takes it for numbers", "regression": "classification takes each for a class"}
    return f"target {target!r} has {distinct:,} different values: a {task} (data.task={other[task]})"


def classes_of(values: Sequence[str], plain: Callable[[str], str]) -> tuple[list[str], np.ndarray, bool]:
    """Name the classes of a column of texts, and number them.

    Numbers are the same class where they are equal, however they are written, compared exactly and whatever their
    length; names are as the column has them.

    Args:
        values: [n], none empty.
        plain: A number as the column has it to one as Python writes it.

    Returns:
        Names in the order of the numbers, or for other texts of the alphabet; [n] int64; and whether they are numbers.
    """
    spellings = sorted(set(values))
    numeric = all(NUMBER.fullmatch(plain(text)) and not CODE.match(text) for text in spellings)
    key_of: dict[str, Any] = {text: Decimal(plain(text)) if numeric else text for text in spellings}
    names: dict[Any, str] = {}
    for text in sorted(spellings, key=lambda text: (len(text), text)):
        names.setdefault(key_of[text], text)
    place = {key: i for i, key in enumerate(sorted(names))}
    labels = np.fromiter((place[key_of[text]] for text in values), np.int64, len(values))
    return [names[key] for key in place], labels, numeric


def doubts(names: Iterable[str]) -> list[str]:
    """Lines about classes that may be meant as one: they differ in case, or in how Unicode writes a letter."""
    alike: dict[str, str] = {}
    lines = []
    for name in names:
        other = alike.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            lines.append(f"the classes {other!r} and {name!r} look alike ({other!a}, {name!a}) and are two")
    return lines


def statistics(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the rows of all pieces, for each column.

    Of differences to a row of the column itself, which an offset of any size costs no digits, and scaled, so that no
    square overflows.

    Args:
        pieces: [n, ...] float64 each, finite; at least one row in all.

    Returns:
        Two of the shape of a row. The deviation of a column that varies by no more than rounding is CONSTANT.
    """
    count, first, mean, std, reach, size = (0, *[np.zeros(0)] * 5)
    for rows in pieces:
        if not len(rows):
            continue
        if not count:
            first = 0.5 * rows[0]  # halves, and again at the end: no difference overflows
            mean, std, reach, size = (np.zeros_like(first) for _ in range(4))
        away = 0.5 * rows - first
        furthest = np.abs(away).max(0)
        unit = np.where(furthest > 0, furthest, 1.0)
        away /= unit
        own_mean, own_std = unit * away.mean(0), unit * away.std(0)
        share = len(rows) / (count + len(rows))
        # Those of two sets of samples together (Chan et al. 1979), as lengths, which are not squared.
        apart = np.abs(own_mean - mean) * np.sqrt(share * (1 - share))
        std = np.hypot(np.hypot(np.sqrt(1 - share) * std, np.sqrt(share) * own_std), apart)
        mean = mean + share * (own_mean - mean)
        reach, size = np.maximum(reach, furthest), np.maximum(size, 0.5 * np.abs(rows).max(0))
        count += len(rows)
    return 2 * (first + mean), np.where(reach <= ROUNDING * size, CONSTANT, 2 * std)


def standardise(rows: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """(rows - mean) / std in float64, in halves, so that no difference overflows."""
    return (0.5 * rows - 0.5 * np.asarray(mean)) / (0.5 * np.asarray(std))


def from_table(
    name: str,
    features: np.ndarray,
    targets: np.ndarray,
    class_names: list[str] | None,
    test: float,
    validation: float,
    split_seed: int,
) -> Data:
    """A data source from a table in memory.

    Inputs, and the targets of a regression, are standardised by mean and standard deviation of the training
    split, so that nothing of the other two splits reaches the model. The loss of a regression is
    therefore of standard deviations; `Data.target_std` gives what one of them is in the target's own unit, in which
    mae and rmse are.

    Args:
        name: Name of the source.
        features: [n, d] float64.
        targets: [n] integer classes 0 .. k - 1 for a classification, [n, d] float64 for a regression.
        class_names: One name per class, or None for a regression.
        test: Share of all rows for the test split, in (0, 1).
        validation: Share of the rest for the validation split, in (0, 1).
        split_seed: Seed of the split.

    Raises:
        ConfigError: A share or the seed is outside its range, there are too few rows, or the target of a
            regression is constant over the training split.
    """
    labels = torch.from_numpy(targets).long() if class_names is not None else None
    indices = split_three(len(features), test, validation, split_seed, labels)
    return from_splits(name, features, targets, class_names, indices)


def from_splits(
    name: str,
    features: np.ndarray,
    targets: np.ndarray,
    class_names: list[str] | None,
    indices: Sequence[Tensor],
    marks: np.ndarray | None = None,
) -> Data:
    """A data source from a table in memory whose rows are split already.

    Args:
        name: Name of the source.
        features: [n, d] float64.
        targets: As for `from_table`.
        class_names: As for `from_table`.
        indices: Rows of the training, the validation and the test split.
        marks: [d] bool, columns of 0 and 1 that stand for words or gaps. Their deviation is taken for MARK: by its
            own a rare one would be as large as all the others together.

    Raises:
        ConfigError: The target of a regression is constant over the training split.
    """
    labels = torch.from_numpy(targets).long() if class_names is not None else None
    train = indices[0].numpy()
    mean, std = statistics([features[train]])
    if marks is not None:
        std[marks & (std != CONSTANT)] = MARK
    inputs = torch.from_numpy(standardise(features, mean, std)).float()
    target_mean: Tensor | None = None
    target_std: Tensor | None = None
    input_mean, input_std = torch.from_numpy(mean), torch.from_numpy(std)
    if labels is not None:
        values, task, outputs = labels, "classification", len(class_names or ())
    else:
        mean, std = target_statistics(targets[train])
        values = torch.from_numpy(standardise(targets, mean, std))
        target_mean, target_std = torch.from_numpy(mean), torch.from_numpy(std)
        task, outputs = "regression", targets.shape[1]
    splits = [TensorSplit(inputs[split], values[split]) for split in indices]
    return Data(
        name=name,
        task=task,
        input_shape=(features.shape[1],),
        num_outputs=outputs,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        class_names=class_names,
        target_mean=target_mean,
        target_std=target_std,
        input_mean=input_mean,
        input_std=input_std,
    )


def target_statistics(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the targets of a regression.

    Args:
        train: Of the training split, [n, d] float64.

    Raises:
        ConfigError: One does not vary.
    """
    mean, std = statistics([train])
    if (std == CONSTANT).any():
        raise ConfigError(
            f"data.target: it is {mean.tolist()} in all {len(train)} training rows; there is nothing to predict. "
            "Name another one, or set data.task=classification where these are classes."
        )
    return mean, std
