"""Samples of different lengths as one batch: filled up to the longest one, with a mask of what is real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from launcher.core.errors import BrokenFile

IGNORED = -100  # a target that torch's losses, and the metrics here, count nowhere


@dataclass(frozen=True)
class Pad:
    """Puts samples (inputs, target) together, where the first side of their tensors has a length of its own.

    Tensors of one key, and of one place of a sample, get the length of the longest in the batch. A model must not see
    what is filled in, which the mask tells it. A target that has a length too is filled with a class that neither
    losses nor metrics count.

    Args:
        values: What tensors of a key of the inputs are filled with, such as {"input_ids": 0}; others by 0.
        mask: The key under which the inputs, a dict, get [n, longest] int64, 1 where a sample is and 0 where it has
            ended; None: none. Samples that have the key bring their own.
        target: What targets are filled with; None: they are of one length, such as labels, and stay.
        multiple: Lengths are rounded up to a multiple of this: compiled kernels then see few different ones.
    """

    values: Mapping[str, float] | None = None
    mask: str | None = "attention_mask"
    target: float | None = IGNORED
    multiple: int = 1

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch, as `default_collate` would make it of samples of one length.

        Raises:
            BrokenFile: Samples differ in more than their lengths.
        """
        if not isinstance(samples[0], tuple | list) or len(samples[0]) != 2:
            return self._together(samples, 0)
        inputs, targets = zip(*samples, strict=True)
        together = default_collate(list(targets)) if self.target is None else self._together(targets, self.target)
        return [self._together(inputs, 0), together]

    def _together(self, given: Sequence[Any], value: float) -> Any:
        first = given[0]
        if isinstance(first, Mapping):
            return self._dicts(given, value)
        if isinstance(first, Tensor) and first.dim():
            return self._filled(given, value)
        return default_collate(list(given))

    def _dicts(self, given: Sequence[Mapping[str, Any]], value: float) -> dict[str, Any]:
        first, values = given[0], self.values or {}
        strange = next((one for one in given if one.keys() != first.keys()), None)
        if strange is not None:
            raise BrokenFile(f"data: a sample has the keys {', '.join(strange)}, and another {', '.join(first)}")
        found = {key: self._together([one[key] for one in given], values.get(key, value)) for key in first}
        long = next((key for key, one in first.items() if isinstance(one, Tensor) and one.dim()), None)
        if self.mask is not None and self.mask not in found and long is not None:
            found[self.mask] = self._filled([torch.ones(len(one[long]), dtype=torch.int64) for one in given], 0)
        return found

    def _filled(self, tensors: Sequence[Tensor], value: float) -> Tensor:
        """[n, longest, ...] of tensors [length, ...]."""
        longest = -(-max(map(len, tensors)) // self.multiple) * self.multiple
        found = tensors[0].new_full((len(tensors), longest, *tensors[0].shape[1:]), value)
        for row, tensor in zip(found, tensors, strict=True):
            if tensor.shape[1:] != row.shape[1:]:
                raise BrokenFile(
                    f"data: a sample is {list(tensor.shape)}, and another {list(tensors[0].shape)}: they may differ in "
                    "their first side alone"
                )
            row[: len(tensor)] = tensor
        return found
