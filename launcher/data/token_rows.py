"""Sequences of tokens of different lengths, each with a target of its own: classes or numbers of a text."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.padding import Pad
from launcher.batching.splits import DatasetSplit

PADDING = 0  # the token that sequences are filled up with, where no tokenizer says another
MULTIPLE = 8  # lengths are rounded up to it: few different ones to compile for, and what tensor cores like


class TokenRows(Dataset):
    """Samples ({"input_ids": [t] int64, ...}, target), from arrays of all samples; their pages may lie in a file.

    Args:
        columns: Key of a sample's inputs to [total] integers, the sequences one after the other.
        offsets: [n + 1] int64, where each begins and the last ends.
        targets: [n, ...].
        rows: [m] int64, which of the n sequences the dataset has, in order.
    """

    def __init__(
        self, columns: Mapping[str, np.ndarray], offsets: np.ndarray, targets: Tensor, rows: np.ndarray
    ) -> None:
        self.columns, self.offsets, self.targets, self.rows = columns, offsets, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        row = self.rows[index]
        here = slice(self.offsets[row], self.offsets[row + 1])
        inputs = {key: torch.from_numpy(tokens[here].astype(np.int64)) for key, tokens in self.columns.items()}
        return inputs, self.targets[row]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[dict[str, Tensor], Tensor]]:
        return [self[index] for index in indices]


def token_split(
    columns: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    targets: Tensor,
    rows: Tensor | None = None,
    padding: int = PADDING,
) -> DatasetSplit:
    """A split of sequences, whose batches are padded and bring the mask `attention_mask`; arguments as for TokenRows.

    Args:
        columns: Of all sequences.
        offsets: Of all.
        targets: Of all.
        rows: [m] int64, those of the split; None: all.
        padding: The token that stands behind the end of a sequence.
    """
    rows = torch.arange(len(targets)) if rows is None else rows
    return DatasetSplit(
        TokenRows(columns, offsets, targets, rows.numpy()),
        targets[rows],
        batched=True,
        collate=Pad({"input_ids": padding}, target=None, multiple=MULTIPLE),
        lengths=torch.from_numpy(np.diff(offsets))[rows],
    )
