"""A dataset whose random augmentation belongs to the sample, whatever batch or process it is read in."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from launcher.batching.generators import TorchGenerator, TwinnedGenerator, process_generators
from launcher.batching.keys import derive_each


class SeededDataset(Dataset):
    """A dataset whose random augmentation is a function of (seed, epoch, sample), asked for a batch at once.

    Most datasets draw from one of the three generators that are one for a whole process, or from none. Seeding all of
    them for each sample takes 15 to 25 us, more than reading many a sample. So a batch is read first and looked at
    then: where a generator has moved it is seeded for each sample from there on, beginning with that batch.

    Args:
        dataset: A map-style dataset.
        key: (epoch) to the key of an epoch, and (epoch, sample) to that of a sample. One that comes again in an epoch
            has a number that is a multiple of the dataset's size higher.
    """

    def __init__(self, dataset: Any, key: Callable[..., int]) -> None:
        self.dataset, self.key, self.size = dataset, key, len(dataset)
        self.whole = getattr(dataset, "__getitems__", None)
        self.still = process_generators()
        self.drawing: list[TorchGenerator | TwinnedGenerator] = []  # those that a sample has drawn from
        self.epoch, self.of_epoch = -1, 0

    def __getitems__(self, batch: tuple[int, list[int]]) -> list[Any]:
        """The samples of an epoch by their numbers."""
        epoch, numbers = batch
        if epoch != self.epoch:
            self.epoch, self.of_epoch = epoch, self.key(epoch)
        indices = indices_of(numbers, self.size)
        while True:
            for generator in self.still:
                generator.begin(self.of_epoch)
            if self.drawing:
                keys = derive_each(np.full(len(numbers), self.of_epoch, dtype=np.uint64), np.array(numbers)).tolist()
                samples = [self._drawn(key, i) for key, i in zip(keys, indices, strict=True)]
            elif self.whole is not None:
                samples = self.whole(indices)
            else:
                samples = [self.dataset[i] for i in indices]
            moved = [generator for generator in self.still if generator.has_moved()]
            if not moved:
                return samples
            self.drawing += moved
            self.still = [generator for generator in self.still if generator not in moved]

    def _drawn(self, key: int, index: int) -> Any:
        for generator in self.drawing:
            generator.seed(key)
        return self.dataset[index]


class WholeDataset(Dataset):
    """A dataset that draws nothing at random and gives several samples at once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: tuple[int, list[int]]) -> Any:
        return self.dataset.__getitems__(indices_of(batch[1], len(self.dataset)))


def indices_of(numbers: list[int], size: int) -> list[int]:
    """Where samples lie in a dataset of a size, by their numbers in an epoch: see SeededDataset."""
    return numbers if max(numbers) < size else [number % size for number in numbers]
