"""Samples that are read one by one: by DataLoaders whose workers stay, and whose samples draw numbers of their own."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from launcher import children
from launcher.data import DatasetPart, as_numbers
from launcher.keys import derive_each


def drawn(
    part: DatasetPart,
    numbered: Iterable[tuple[int, np.ndarray]],
    key: Callable[..., int],
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Any, Any]]:
    """Prepared inputs and targets of batches, augmented, on the device.

    Args:
        part: What to read.
        numbered: The epoch and the sample numbers of each batch.
        key: As for SeededDataset.
        workers: Processes that load samples; 0 loads them in this one.
        device: Where the batches are put.
    """
    dataset = WholeDataset(part.dataset) if part.batched else SeededDataset(part.dataset, key)
    return _prepared(part, _open(part, dataset, numbered, workers, device), device)


def in_order(
    part: DatasetPart, cuts: list[tuple[int, int]], workers: int, device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Prepared inputs and targets of batches in the order of the data and without augmentation, on the device.

    Workers stay for the next time that the part is read: to start them takes longer than many an evaluation.

    Args:
        part: What to read.
        cuts: First (inclusive) and last (exclusive) sample of each batch.
        workers: Processes that load samples; 0 loads them in this one.
        device: Where the batches are put.
    """
    batches, workers = [list(range(*cut)) for cut in cuts], min(workers, len(cuts))
    if part.loader is None or (part.loader.num_workers > 0) != (workers > 0):
        part.loader = _open(part, part.plain or part.dataset, [], workers, device, stay=workers > 0)
    part.loader.batch_sampler[:] = batches
    return _prepared(part, part.loader, device)


def _open(
    part: DatasetPart,
    dataset: Dataset,
    batches: Iterable[Any],
    workers: int,
    device: torch.device,
    stay: bool = False,
) -> Any:
    """A DataLoader of the batches that are named, whose workers may stay when it has been through all of them."""
    if workers:  # a worker that finds what it needs imported is there in a tenth of the time
        needed = getattr(part.dataset, "preload", ())
        children.start_fork_server(["__main__", __name__, type(part.dataset).__module__, *needed])
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=partial(children.serve_trainer, dict(os.environ)) if workers else None,
        persistent_workers=stay,
    )


def _prepared(part: DatasetPart, loader: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
    for batch in children.loaded(loader):
        inputs, targets = to_device(batch, device)
        yield as_numbers(inputs if part.prepare is None else part.prepare(inputs), part), targets


def to_device(tree: Any, device: torch.device) -> Any:
    """Put every tensor of a pytree on the device; from pinned memory the copy runs beside the computation."""
    if isinstance(tree, Tensor):
        if device.type == "cuda" and tree.device.type == "cpu" and not tree.is_pinned():
            tree = tree.pin_memory()
        return tree.to(device, non_blocking=True)
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: to_device(tensor, device), tree)


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
        self.generators: list[_Generator] = [_Torch(), _Python(), _NumPy()]
        self.drawing: list[_Generator] = []  # those of them that a sample has drawn from

    def __getitems__(self, batch: tuple[int, np.ndarray]) -> list[Any]:
        """The samples of an epoch by their numbers."""
        epoch, numbers = batch
        indices, of_epoch, of_batch = (numbers % self.size).tolist(), self.key(epoch), self.key(epoch, int(numbers[0]))
        while True:
            still = [generator for generator in self.generators if generator not in self.drawing]
            for generator in still:
                generator.begin(of_epoch, of_batch)
            if self.drawing:
                keys = derive_each(np.full(len(numbers), of_epoch, dtype=np.uint64), numbers).tolist()
                samples = [self._drawn(key, i) for key, i in zip(keys, indices, strict=True)]
            elif self.whole is not None:
                samples = self.whole(indices)
            else:
                samples = [self.dataset[i] for i in indices]
            moved = [generator for generator in still if generator.has_moved()]
            if not moved:
                return samples
            self.drawing += moved

    def _drawn(self, key: int, index: int) -> Any:
        for generator in self.drawing:
            generator.seed(key)
        return self.dataset[index]


class _Generator:
    """One of the generators that are one for a whole process."""

    def seed(self, key: int) -> None:
        """Seed it for a sample."""
        raise NotImplementedError

    def begin(self, of_epoch: int, of_batch: int) -> None:
        """Seed it so that `has_moved` can tell."""
        raise NotImplementedError

    def has_moved(self) -> bool:
        """Whether anything was drawn since `begin`."""
        raise NotImplementedError


class _Torch(_Generator):
    """The generator of torch that CPU tensors are drawn from."""

    def seed(self, key: int) -> None:
        torch.default_generator.manual_seed(key >> 1)

    def begin(self, of_epoch: int, of_batch: int) -> None:
        self.seed(of_epoch)  # and not of the batch, which depends on the devices: samples may ask for initial_seed()
        self.before = torch.default_generator.get_state()

    def has_moved(self) -> bool:
        return not torch.equal(self.before, torch.default_generator.get_state())


class _Python(_Generator):
    """The generator of the module random. Its state takes longer to compare than a number drawn from a twin."""

    def __init__(self) -> None:
        self.twin = random.Random()

    def seed(self, key: int) -> None:
        random.seed(key)

    def begin(self, of_epoch: int, of_batch: int) -> None:
        random.seed(of_batch)
        self.twin.seed(of_batch)

    def has_moved(self) -> bool:
        return random.random() != self.twin.random()


class _NumPy(_Generator):
    """The legacy generator of NumPy."""

    def __init__(self) -> None:
        self.twin = np.random.RandomState()

    def seed(self, key: int) -> None:
        np.random.seed(key & 0xFFFFFFFF)

    def begin(self, of_epoch: int, of_batch: int) -> None:
        np.random.seed(of_batch & 0xFFFFFFFF)
        self.twin.seed(of_batch & 0xFFFFFFFF)

    def has_moved(self) -> bool:
        return np.random.random_sample() != self.twin.random_sample()


class WholeDataset(Dataset):
    """A dataset that draws nothing at random and gives several samples at once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: tuple[int, np.ndarray]) -> Any:
        return self.dataset.__getitems__((batch[1] % len(self.dataset)).tolist())
