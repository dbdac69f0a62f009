"""Samples that are read one by one: by DataLoaders whose workers stay, and whose samples draw numbers of their own."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from launcher.batching.generators import TorchGenerator, TwinnedGenerator, process_generators
from launcher.batching.keys import derive_each
from launcher.batching.splits import DatasetSplit, as_numbers
from launcher.batching.transfer import collate_to_send, copied_aside
from launcher.batching.workers import choose_workers
from launcher.core.compat import tree_leaves
from launcher.core.errors import ConfigError
from launcher.distributed import children


def drawn(
    split: DatasetSplit,
    numbered: Iterable[tuple[int, list[int]]],
    key: Callable[..., int],
    workers: int | str,
    device: torch.device,
    size: int,
) -> Iterator[tuple[Any, Any]]:
    """Prepared inputs and targets of batches, augmented, on the device.

    A batch is an epoch and sample numbers in it, `size` of them where it is cut nowhere; `key` is as for SeededDataset.
    """
    workers = choose_workers(workers, split, size)
    dataset = WholeDataset(split.dataset) if split.batched else SeededDataset(split.dataset, key)
    return prepared(split, open_loader(split, dataset, numbered, workers, device), device)


def in_order(
    split: DatasetSplit, cuts: list[tuple[int, int]], workers: int | str, device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Prepared inputs and targets of batches in the order of the data and without augmentation, on the device.

    A batch is the samples from the first (inclusive) to the last (exclusive) of a cut. Workers stay for the next time
    that the split is read: to start them takes longer than many an evaluation.
    """
    batches = [list(range(*cut)) for cut in cuts]
    workers = min(choose_workers(workers, split, len(batches[0])), len(cuts)) if cuts else 0
    if split.loader is None or (split.loader.num_workers > 0) != (workers > 0):
        split.loader = open_loader(split, split.plain or split.dataset, [], workers, device, stay=workers > 0)
    split.loader.batch_sampler[:] = batches
    return prepared(split, split.loader, device)


def open_loader(
    split: DatasetSplit,
    dataset: Dataset,
    batches: Iterable[Any],
    workers: int,
    device: torch.device,
    stay: bool = False,
) -> Any:
    """A DataLoader of the batches that are named, whose workers may stay when it has been through all of them."""
    if not workers:
        return InProcessLoader(dataset, batches, split.collate or _collated)
    # A worker that finds what it needs imported is there in a tenth of the time
    needed = getattr(split.dataset, "preload", ())
    children.start_fork_server(["__main__", __name__, type(split.dataset).__module__, *needed])
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate_to_send, split.collate),
        pin_memory=device.type == "cuda",
        multiprocessing_context="forkserver",
        worker_init_fn=partial(children.serve_trainer, dict(os.environ)),
        persistent_workers=stay,
    )


def _collated(samples: Any) -> Any:
    """What torch's default_collate makes of samples, without its questions where they are tensors and classes."""
    first = samples[0] if type(samples) is list else None
    if type(first) is tuple and [type(one) for one in first] == [Tensor, int]:
        with suppress(ValueError):  # a sample of another length, of which torch has more to say
            inputs, targets = zip(*samples, strict=True)
            return [torch.stack(inputs), torch.tensor(targets)]
    return default_collate(samples)


@dataclass
class InProcessLoader:
    """A DataLoader without workers, and without what one does for each batch of 64 beside reading it: 30 us."""

    dataset: Any
    batch_sampler: Iterable[Any]
    collate: Callable[[Any], Any] = _collated

    num_workers: ClassVar[int] = 0

    def __iter__(self) -> Iterator[Any]:
        whole = getattr(self.dataset, "__getitems__", None)
        for batch in self.batch_sampler:
            yield self.collate([self.dataset[i] for i in batch] if whole is None else whole(batch))


def prepared(split: DatasetSplit, loader: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets of the batches that a loader gives, on the device."""
    as_it_is = device.type == "cpu" and not loader.num_workers
    for batch in children.loaded(loader):
        inputs, targets = pair(batch if as_it_is else copied_aside(batch, device))
        yield as_numbers(inputs if split.prepare is None else split.prepare(inputs), split), targets


def pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch; of samples that are no pair all of it, and zeros [n] as targets."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    if first is None:
        raise ConfigError(
            f"data: a batch is a {type(batch).__name__} without a tensor in it. A dataset's samples, or the `collate` "
            "of its split, must give tensors: a pair (inputs, targets), or inputs alone."
        )
    return batch, torch.zeros(len(first), dtype=torch.int64, device=first.device)


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
        indices = _indices_of(numbers, self.size)
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
        return self.dataset.__getitems__(_indices_of(batch[1], len(self.dataset)))


def _indices_of(numbers: list[int], size: int) -> list[int]:
    """Where samples lie in a dataset of a size, by their numbers in an epoch: see SeededDataset."""
    return numbers if max(numbers) < size else [number % size for number in numbers]
