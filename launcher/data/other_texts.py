"""Texts that a run did not learn from, from a file or at hand, as the tokens that its own became."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.core.errors import ConfigError
from launcher.core.files import number
from launcher.data.columns import kind_of, text_cells
from launcher.data.huggingface import read
from launcher.data.source import Others
from launcher.data.table_statistics import standardise
from launcher.data.targets import read_targets
from launcher.data.text_columns import Vocabulary
from launcher.data.token_rows import token_split


def read_alike(
    path: str | Sequence[str],
    column: str,
    target: Sequence[str],
    task: str,
    tokenizer: str | None,
    digest: str,
    max_tokens: int,
    record: Mapping[str, Any],
) -> Others:
    """Read texts and make tokens of them as the training run did.

    Args:
        path: A csv, tsv, json or parquet file, packed or not, or what else data=huggingface reads as one split; or a
            list of the texts themselves.
        column: The one with the texts.
        target: Columns of the true values; they may be absent.
        task: Of the run.
        tokenizer: As for `Vocabulary`.
        digest: Of the tokenizer.
        max_tokens: As for `Vocabulary`.
        record: data.json of the run, by which true values are understood.

    Raises:
        ConfigError: The file, a column or a value is missing or unfit, the tokenizer is another one than it was, or a
            class was not in training.
    """
    vocabulary = Vocabulary(tokenizer, max_tokens, None)
    if vocabulary.digest != digest:
        raise ConfigError(
            f"data.tokenizer={tokenizer}: is not the tokenizer that the run learned with, and would give other "
            "tokens. Put that one back."
        )
    if not isinstance(path, str):
        return _others(vocabulary, list(path), "the texts", None)
    if not Path(path).expanduser().exists():
        raise ConfigError(f"input={path}: there is no such file.")
    sets = read(path, None, False, "input")
    if len(sets) > 1:
        raise ConfigError(f"input={path}: it has the splits {', '.join(sets)}; name a file with one of them.")
    (dataset,) = sets.values()
    if column not in dataset.column_names:
        raise ConfigError(
            f"input={path}: it has no column {column!r}, in which the run has its texts; it has: "
            f"{', '.join(dataset.column_names)}."
        )
    if (held := kind_of({"train": dataset}, column)) != "text":
        raise ConfigError(f"input={path}: its column {column!r} holds {held}, no text.")
    wanted = None
    if set(target) <= {*dataset.column_names}:
        wanted = _wanted(dataset, target, task, record)
    return _others(vocabulary, text_cells(dataset, column), f"{column!r} of {path}", wanted)


def _others(vocabulary: Vocabulary, texts: list[str | None], where: str, wanted: Tensor | None) -> Others:
    if not texts:
        raise ConfigError(f"input: {where} are none.")
    found, _ = vocabulary.sequences(texts, where, "input", keep=False)
    targets = torch.zeros(len(texts), dtype=torch.int64) if wanted is None else wanted
    split = token_split({"input_ids": found.tokens}, found.offsets, targets, None, vocabulary.padding)
    return Others(split, [str(row) for row in range(len(texts))], wanted is not None)


def _wanted(dataset: Any, target: Sequence[str], task: str, record: Mapping[str, Any]) -> Tensor:
    """The true values of each row, as the run has them."""
    classes = record["class_names"]
    if classes is not None:
        (column,) = target
        named = getattr(dataset.features[column], "names", None)
        number_of = {name: i for i, name in enumerate(classes)}
        values = dataset.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
        texts = [named[one] if named is not None and one is not None and one >= 0 else str(one) for one in values]
        if strange := [row for row, text in enumerate(texts) if text not in number_of]:
            raise ConfigError(
                f"input: row {strange[0]} has {column!r} = {texts[strange[0]]!r}, which is no class of the training "
                f"run; those are: {', '.join(classes)}. Without that column no true values are needed."
            )
        return torch.tensor([number_of[text] for text in texts])
    values, *_ = read_targets({"train": dataset}, list(target), task)
    if record["target_mean"] is None:
        return torch.from_numpy(values["train"])
    mean, std = (np.array([number(one) for one in record[f"target_{name}"]]) for name in ("mean", "std"))
    return torch.from_numpy(standardise(values["train"], mean, std))
