"""Sequences of tokens of different lengths, each with a target of its own: classes or numbers of a text."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.padding import Pad
from launcher.batching.splits import DatasetSplit

PADDING = 0  # the token that sequences are filled up with, where no tokenizer says another
MULTIPLE = 8  # lengths are rounded up to it: few different ones to compile for, and what tensor cores like


class TokenRows(Dataset):
    """Samples ({"input_ids": [t] int64}, target), from all tokens in one array; its pages may lie in a file.

    Args:
        tokens: [total] integers, the sequences one after the other.
        offsets: [n + 1] int64, where each begins and the last ends.
        targets: [n, ...].
        rows: [m] int64, which of the n sequences the dataset has, in order.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, targets: Tensor, rows: np.ndarray) -> None:
        self.tokens, self.offsets, self.targets, self.rows = tokens, offsets, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        row = self.rows[index]
        tokens = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return {"input_ids": torch.from_numpy(tokens.astype(np.int64))}, self.targets[row]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[dict[str, Tensor], Tensor]]:
        return [self[index] for index in indices]


def token_split(
    tokens: np.ndarray, offsets: np.ndarray, targets: Tensor, rows: Tensor, padding: int = PADDING
) -> DatasetSplit:
    """A split of sequences, whose batches are padded and bring the mask `attention_mask`; arguments as for TokenRows.

    Args:
        tokens: Of all sequences.
        offsets: Of all.
        targets: Of all.
        rows: [m] int64, those of the split.
        padding: The token that stands behind the end of a sequence.
    """
    return DatasetSplit(
        TokenRows(tokens, offsets, targets, rows.numpy()),
        targets[rows],
        batched=True,
        collate=Pad({"input_ids": padding}, multiple=MULTIPLE),
        lengths=torch.from_numpy(np.diff(offsets))[rows],
    )
