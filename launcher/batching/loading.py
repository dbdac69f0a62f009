"""Samples that are read one by one: by DataLoaders whose workers stay, and whose samples draw numbers of their own."""

import io
import logging
import os
import pickle
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from launcher.batching.keys import derive_each
from launcher.batching.splits import DatasetSplit, Split, TensorSplit, as_numbers
from launcher.distributed import children
from launcher.distributed.process_group import share_of_cores

log = logging.getLogger("launcher")

TRIED = 16  # samples that are read to learn how long one takes
PATIENCE = 0.5  # seconds after which no more of them are read
WORTH = 1e-3  # seconds: what takes less to read is not worth sending from one process to another
SMALL = 1 << 15  # bytes of a tensor that a process sends as they are: shared memory is talked about for 0.2 ms each
PLAIN = {  # types that NumPy has too
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32,
    torch.float64,
}  # fmt: skip
MOST = 8  # processes that `auto` starts, of each kind of samples


def drawn(
    part: DatasetSplit,
    numbered: Iterable[tuple[int, list[int]]],
    key: Callable[..., int],
    workers: int | str,
    device: torch.device,
    size: int,
) -> Iterator[tuple[Any, Any]]:
    """Prepared inputs and targets of batches, augmented, on the device.

    Args:
        part: What to read.
        numbered: The epoch and the sample numbers of each batch.
        key: As for SeededDataset.
        workers: Processes that load samples; 0 loads them in this one, auto starts as many as help.
        device: Where the batches are put.
        size: Of a batch that is cut nowhere.
    """
    workers = choose_workers(workers, part, size)
    dataset = WholeDataset(part.dataset) if part.batched else SeededDataset(part.dataset, key)
    return _prepared(part, _open(part, dataset, numbered, workers, device), device, Side.of(device))


def in_order(
    part: DatasetSplit, cuts: list[tuple[int, int]], workers: int | str, device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Prepared inputs and targets of batches in the order of the data and without augmentation, on the device.

    Workers stay for the next time that the part is read: to start them takes longer than many an evaluation.

    Args:
        part: What to read.
        cuts: First (inclusive) and last (exclusive) sample of each batch.
        workers: Processes that load samples; 0 loads them in this one, auto starts as many as help.
        device: Where the batches are put.
    """
    batches = [list(range(*cut)) for cut in cuts]
    workers = min(choose_workers(workers, part, len(batches[0])), len(cuts)) if cuts else 0
    if part.loader is None or (part.loader.num_workers > 0) != (workers > 0):
        part.loader = _open(part, part.plain or part.dataset, [], workers, device, stay=workers > 0)
    part.loader.batch_sampler[:] = batches
    return _prepared(part, part.loader, device, Side.of(device))


def choose_workers(workers: int | str, part: Split, size: int) -> int:
    """Processes that load samples: a number, or what `auto` means for a part.

    None where a batch is read in less time than it takes to send it from one process to another, or where the dataset
    cannot be sent to one; else one per core of this process's share, at most 8. A few samples are timed, in a copy as
    a worker would get it, and once for each part. The result of a run does not depend on the number.

    Args:
        workers: The setting.
        part: What to read.
        size: Samples of a batch.
    """
    if workers != "auto":
        return int(workers)
    if isinstance(part, TensorSplit):
        return 0
    if part.workers is None:
        try:
            dataset = as_a_worker_gets_it(part.dataset)
        except Exception as error:
            part.workers, why = 0, f"the dataset cannot be sent to another process: {error}"
        else:
            with generators_kept():
                seconds = _seconds_a_batch(dataset, size)
            part.workers = 0 if seconds < WORTH else min(MOST, share_of_cores())
            why = f"to read a batch of {size} takes {1000 * seconds:.3g} ms"
        log.info("loading    by %s: %s", f"{part.workers} processes" if part.workers else "the run's own process", why)
    return part.workers


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the generators of torch (that of the CPU), NumPy and Python back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _seconds_a_batch(dataset: Any, size: int) -> float:
    """How long it takes to read one, by some samples from all over a dataset."""
    whole, seconds, began = hasattr(dataset, "__getitems__"), list[float](), time.perf_counter()
    for i in range(3 if whole else TRIED + 1):
        before = time.perf_counter()
        if before - began > PATIENCE and seconds:
            break
        if whole:
            dataset.__getitems__([(i + place * len(dataset)) // size % len(dataset) for place in range(size)])
        else:
            dataset[i * (len(dataset) - 1) // TRIED]
        seconds.append(time.perf_counter() - before)
    seconds = sorted(seconds[1:] or seconds)  # the first may open files and import modules
    return seconds[len(seconds) // 2] * (1 if whole else size)


def as_a_worker_gets_it(thing: Any) -> Any:
    """A copy, made as for a process that loads: what it opens when it is read stays there. Arrays are shared."""
    try:
        sent = io.BytesIO()
        _Sharing(sent, pickle.HIGHEST_PROTOCOL).dump(thing)
        return pickle.loads(sent.getbuffer())
    finally:
        _kept.clear()


_kept: list[Any] = []  # arrays of a dataset that is copied


def _take(number: int) -> Any:
    return _kept[number]


class _Sharing(ForkingPickler):
    """Pickles as for a process, but for arrays, which stay where they are."""

    def reducer_override(self, thing: Any) -> Any:
        """How to make a thing again."""
        if not isinstance(thing, Tensor | np.ndarray):
            return NotImplemented
        _kept.append(thing)
        return _take, (len(_kept) - 1,)


def _open(
    part: DatasetSplit,
    dataset: Dataset,
    batches: Iterable[Any],
    workers: int,
    device: torch.device,
    stay: bool = False,
) -> Any:
    """A DataLoader of the batches that are named, whose workers may stay when it has been through all of them."""
    if not workers:
        return _Loader(dataset, batches)
    # A worker that finds what it needs imported is there in a tenth of the time
    needed = getattr(part.dataset, "preload", ())
    children.start_fork_server(["__main__", __name__, type(part.dataset).__module__, *needed])
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_sent,
        pin_memory=device.type == "cuda",
        multiprocessing_context="forkserver",
        worker_init_fn=partial(children.serve_trainer, dict(os.environ)),
        persistent_workers=stay,
    )


class _Loader:
    """A DataLoader without workers, and without what one does for each batch of 64 beside reading it: 30 us.

    Args:
        dataset: What to read.
        batch_sampler: What to ask it for.
    """

    num_workers = 0

    def __init__(self, dataset: Any, batch_sampler: Iterable[Any]) -> None:
        self.dataset, self.batch_sampler = dataset, batch_sampler

    def __iter__(self) -> Iterator[Any]:
        whole = getattr(self.dataset, "__getitems__", None)
        for batch in self.batch_sampler:
            yield _collated([self.dataset[i] for i in batch] if whole is None else whole(batch))


def _collated(samples: Any) -> Any:
    """What torch's default_collate makes of samples, without its questions where they are tensors and classes."""
    first = samples[0] if type(samples) is list else None
    if type(first) is tuple and [type(part) for part in first] == [Tensor, int]:
        with suppress(ValueError):  # a sample of another length, of which torch has more to say
            inputs, targets = zip(*samples, strict=True)
            return [torch.stack(inputs), torch.tensor(targets)]
    return default_collate(samples)


def _sent(samples: Any) -> Any:
    """A batch as a process sends it: `to_device` makes tensors of the arrays."""
    return _each(default_collate(samples), Tensor, _smaller)


def _smaller(tensor: Tensor) -> Tensor | np.ndarray:
    small = type(tensor) is Tensor and tensor.nbytes <= SMALL and tensor.dtype in PLAIN
    return tensor.numpy() if small and tensor.layout is torch.strided and not tensor.requires_grad else tensor


class Side:
    """A second queue of a GPU, in which a batch is copied while the first one still computes the step before.

    On the queue of the computation itself a copy waits for all that was asked of it before, pinned memory or not.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    @staticmethod
    @cache
    def of(device: torch.device) -> "Side | None":
        """The one of a device; None where nothing is queued, on a CPU, whose copies are there when they are made."""
        return Side(device) if device.type == "cuda" else None

    def entered(self) -> AbstractContextManager[Any]:
        """Let what is asked of the device in here go into this queue."""
        return torch.cuda.stream(self.stream)

    def computing(self) -> Any:
        """The queue that computes."""
        return torch.cuda.current_stream(self.device)

    def lend(self, tensor: Tensor, queue: Any) -> None:
        """Keep a tensor's memory from being used again here before what `queue` does with it is done."""
        tensor.record_stream(queue)


def _prepared(part: DatasetSplit, loader: Any, device: torch.device, side: Side | None) -> Iterator[tuple[Any, Any]]:
    as_it_is = device.type == "cpu" and not loader.num_workers
    for batch in children.loaded(loader):
        inputs, targets = batch if as_it_is else copied_aside(batch, device, side)
        yield as_numbers(inputs if part.prepare is None else part.prepare(inputs), part), targets


def copied_aside(tree: Any, device: torch.device, side: Side | None) -> Any:
    """What `to_device` gives, copied beside the computation, which waits for it in its queue before it goes on.

    Args:
        tree: As for `to_device`.
        device: Where to put it.
        side: The queue for it; None copies at once.
    """
    if side is None:
        return to_device(tree, device)
    with side.entered():
        found = to_device(tree, device)
        arrived = side.stream.record_event()
    computing = side.computing()
    computing.wait_event(arrived)
    _each(found, Tensor, lambda tensor: side.lend(tensor, computing))
    return found


def to_device(tree: Any, device: torch.device) -> Any:
    """Put every tensor of a pytree on the device; from pinned memory this process does not wait for the copy.

    Args:
        tree: Of tensors, or of NumPy arrays, of which they are made.
        device: Where to put them.
    """

    def put(one: Tensor | np.ndarray) -> Tensor:
        tensor = one if isinstance(one, Tensor) else torch.from_numpy(one)
        if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    return _each(tree, (Tensor, np.ndarray), put)


def _each(tree: Any, kinds: Any, change: Callable[[Any], Any]) -> Any:
    """A pytree with each leaf of some kinds changed."""
    if isinstance(tree, kinds):
        return change(tree)
    if type(tree) in (list, tuple):  # most batches: 2 us in place of the 10 of a walk through a pytree
        return type(tree)(_each(branch, kinds, change) for branch in tree)
    return torch.utils._pytree.tree_map_only(kinds, change, tree)


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
        self.still: list[_Generator] = [_Torch(), _Python(), _NumPy()]
        self.drawing: list[_Generator] = []  # those that a sample has drawn from
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


class _Generator:
    """One of the generators that are one for a whole process."""

    def seed(self, key: int) -> None:
        """Seed it for a sample."""
        raise NotImplementedError

    def begin(self, key: int) -> None:
        """Remember where it is, so that `has_moved` can tell; it may be seeded, with a key that no device changes."""
        raise NotImplementedError

    def has_moved(self) -> bool:
        """Whether anything was drawn since `begin`."""
        raise NotImplementedError


class _Torch(_Generator):
    """The generator of torch that CPU tensors are drawn from."""

    def seed(self, key: int) -> None:
        torch.default_generator.manual_seed(key >> 1)

    def begin(self, key: int) -> None:
        if torch.default_generator.initial_seed() != key >> 1:  # samples may ask for it
            self.seed(key)
        self.before = torch.default_generator.get_state()

    def has_moved(self) -> bool:
        return not torch.equal(self.before, torch.default_generator.get_state())


class _Twinned(_Generator):
    """A generator whose state takes longer to compare than a number drawn from a twin, which moves as it does."""

    def seed_twin(self, key: int) -> None:
        """Seed the twin as `seed` does the generator."""
        raise NotImplementedError

    def begin(self, key: int) -> None:
        if self.has_moved():  # by somebody else, between two batches
            self.seed(key)
            self.seed_twin(key)


class _Python(_Twinned):
    """The generator of the module random."""

    def __init__(self) -> None:
        self.twin = random.Random()

    def seed(self, key: int) -> None:
        random.seed(key)

    def seed_twin(self, key: int) -> None:
        self.twin.seed(key)

    def has_moved(self) -> bool:
        return random.random() != self.twin.random()


class _NumPy(_Twinned):
    """The legacy generator of NumPy."""

    def __init__(self) -> None:
        self.twin = np.random.RandomState()

    def seed(self, key: int) -> None:
        np.random.seed(key & 0xFFFFFFFF)

    def seed_twin(self, key: int) -> None:
        self.twin.seed(key & 0xFFFFFFFF)

    def has_moved(self) -> bool:
        return np.random.random_sample() != self.twin.random_sample()


class WholeDataset(Dataset):
    """A dataset that draws nothing at random and gives several samples at once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: tuple[int, list[int]]) -> Any:
        return self.dataset.__getitems__(indices_of(batch[1], len(self.dataset)))


def indices_of(numbers: list[int], size: int) -> list[int]:
    """Where samples lie in a dataset of a size, by their numbers in an epoch: see SeededDataset."""
    return numbers if max(numbers) < size else [number % size for number in numbers]
