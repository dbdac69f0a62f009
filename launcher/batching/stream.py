"""The order of samples as a pure function of (seed, epoch, position), and the batches it gives a rank.

Nothing here has a state to save: to continue at any step is to ask for that step.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching import loading
from launcher.batching.keys import AUGMENT, ORDER, derive, derive_each, mix
from launcher.batching.loading import to_device
from launcher.batching.plan import BatchPlan
from launcher.batching.splits import DatasetSplit, TensorSplit, as_numbers
from launcher.distributed.process_group import Ranks

if TYPE_CHECKING:
    from launcher.batching.sampling import Balanced

# In-memory data is gathered this much at a time. Memory of a megabyte is used again at once, where the pages of eight
# come new from the kernel each time: half the time of a small model's batch. A GPU likes fewer and larger copies.
GATHER_BYTES = {"cpu": 1 << 20, "cuda": 8 << 20}
NUMBER_BYTES = 1 << 18  # and numbered, with their uniform numbers, so much at a time
NUMBERED = 1 << 14  # samples of a Dataset, which have no uniform numbers
ROUNDS = 8


def seed_generators(seed: int) -> None:
    """Seed the generators of torch, Python and NumPy, the same on every rank: initial weights are drawn from them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(derive(seed) & 0xFFFFFFFF)


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each position of 0..size-1 lands in the permutation named by `key`.

    A Feistel network over the smallest power of two that holds `size`, walked until the value falls inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): constant time and memory per position,
    whatever the size.

    Args:
        positions: [n] integers in 0..size-1.
        size: Number of samples, 1 to 2**62.
        key: Names the permutation, 0 to 2**64-1.

    Returns:
        [n] int64 sample numbers.
    """
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    high_bits = np.uint64(bits - bits // 2)
    keys = [np.uint64(derive(key, round_)) for round_ in range(ROUNDS)]
    values = np.asarray(positions).astype(np.uint64)
    outside = np.arange(len(values))
    moving = values
    while len(outside):
        left_bits, right_bits = high_bits, low_bits
        left, right = moving >> low_bits, moving & ((np.uint64(1) << low_bits) - np.uint64(1))
        for round_key in keys:
            mask = (np.uint64(1) << left_bits) - np.uint64(1)
            left, right = right, left ^ (mix(right + round_key) & mask)
            left_bits, right_bits = right_bits, left_bits
        moving = (left << right_bits) | right
        values[outside] = moving
        still = moving >= size
        outside, moving = outside[still], moving[still]
    return values.astype(np.int64)


def permute_each(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """As `permute`, but for a size and a key of each position's own.

    Args:
        positions: [n] integers, each in 0..size-1 of its own size.
        sizes: [n] from 1 to 2**52.
        keys: [n] uint64.

    Returns:
        [n] int64.
    """
    two, one = np.uint64(2), np.uint64(1)
    bits = np.maximum(np.frexp((sizes - 1).astype(np.float64))[1], 2).astype(np.uint64)
    low_bits = bits // two
    high_bits = bits - low_bits
    round_keys = [derive_each(np.zeros_like(keys), keys, round_) for round_ in range(ROUNDS)]
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left_bits, right_bits = high_bits[outside], low_bits[outside]
        moving = values[outside]
        left, right = moving >> right_bits, moving & ((one << right_bits) - one)
        for of_round in round_keys:
            left, right = right, left ^ (mix(right + of_round[outside]) & ((one << left_bits) - one))
            left_bits, right_bits = right_bits, left_bits
        values[outside] = (left << right_bits) | right
        outside = outside[values[outside] >= sizes[outside].astype(np.uint64)]
    return values.astype(np.int64)


def uniforms(samples: np.ndarray, draws: int, key: int) -> np.ndarray:
    """Uniform numbers that belong to the samples: the same whatever batch, rank or worker a sample is in.

    Args:
        samples: [n] sample numbers.
        draws: Numbers per sample.
        key: Names the series, such as derive(seed, AUGMENT, epoch).

    Returns:
        [n, draws] float32 in [0, 1), multiples of 2**-24.
    """
    counters = np.asarray(samples).astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
    bits = mix(mix(counters + np.uint64(key)) + np.uint64(key))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


@dataclass(slots=True)
class MicroBatch:
    """What a device sees in one forward and backward.

    Attributes:
        inputs: [max(size, 1), ...] tensor, or a pytree of such tensors.
        targets: [max(size, 1), ...].
        size: Samples that count; 0 for a placeholder.
        shard: The piece of the global batch that it is part of: the rank's number, or that of a canonical shard.
    """

    inputs: Any
    targets: Any
    size: int
    shard: int = 0


@dataclass(slots=True)
class Batch:
    """A rank's part of one global batch.

    Attributes:
        step: Optimizer updates done before this one.
        size: Samples in the global batch, over all ranks.
        micros: The rank's micro-batches.
    """

    step: int
    size: int
    micros: list[MicroBatch]


class Stream:
    """The global batches of a run, and a rank's part in each.

    Args:
        part: The training part.
        plan: How a global batch is cut.
        seed: Of the run.
        rank: Whose part to deliver: a rank's, or that of a canonical shard.
        device: Where the batches are put.
        workers: Processes that load samples of a DatasetSplit; see loading.choose_workers.
        shuffle: False keeps the order of the data (every epoch the same).
        balanced: Draws the samples instead, each class equally often.
    """

    def __init__(
        self,
        part: TensorSplit | DatasetSplit,
        plan: BatchPlan,
        seed: int,
        rank: int,
        device: torch.device,
        workers: int | str,
        shuffle: bool = True,
        balanced: "Balanced | None" = None,
    ) -> None:
        self.part, self.plan, self.seed, self.rank = part, plan, seed, rank
        self.device, self.workers, self.shuffle, self.balanced = device, workers, shuffle, balanced

    def samples(self, step: int) -> np.ndarray:
        """[size] sample numbers of the global batch of a step, in order."""
        epoch, position = divmod(step, self.plan.steps_per_epoch)
        first = position * self.plan.global_size
        return self._order(epoch, np.arange(first, first + self.plan.size_of(position))) % self.plan.samples

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's batches of the steps first_step (inclusive) to last_step (exclusive)."""
        if isinstance(self.part, TensorSplit):
            return self._from_memory(self.part, first_step, last_step)
        return self._from_loader(self.part, first_step, last_step)

    def _order(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Sample numbers; a sample that comes again in an epoch is a multiple of the number of samples further."""
        if self.balanced is not None:
            return self.balanced.draw(epoch, positions)
        if not self.shuffle:
            return positions
        return permute(positions, self.plan.samples, derive(self.seed, ORDER, epoch))

    def _positions(self, position: int) -> tuple[np.ndarray, list[int]]:
        """Positions in the epoch of this rank's samples at a step of it, and the sizes of its micro-batches.

        A placeholder takes the first sample of the global batch.
        """
        size = self.plan.size_of(position)
        first, last = self.plan.share(self.rank, size)
        sizes = self.plan.micro_sizes(self.rank, size)
        start = position * self.plan.global_size
        if 0 not in sizes:
            return np.arange(start + first, start + last), sizes
        parts, at = [], first
        for micro in sizes:
            parts.append(np.arange(start + at, start + at + micro) if micro else np.array([start]))
            at += micro
        return np.concatenate(parts), sizes

    def _from_memory(self, part: TensorSplit, step: int, last_step: int) -> Iterator[Batch]:
        """Number many batches at once and gather some at once: a call costs as much for one batch as for a hundred."""
        steps_per_epoch, micro_batch = self.plan.steps_per_epoch, self.plan.global_size // self.plan.shards or 1
        at_once = GATHER_BYTES["cuda" if self.device.type == "cuda" else "cpu"]
        # Chunks begin at the same places whatever step a run begins at: matrix kernels round differently at another
        # alignment of the very same numbers, so a batch must lie at the same offset after a resume.
        chunk = max(1, at_once // (4 * max(1, part.inputs[0].numel()) * micro_batch))
        block = chunk * max(1, NUMBER_BYTES // (4 * max(2, part.draws) * micro_batch * chunk))
        while step < last_step:
            epoch, position = divmod(step, steps_per_epoch)
            begin = position - position % chunk
            cut = [self._positions(at) for at in range(begin, min(begin + block, steps_per_epoch))]
            numbers = self._order(epoch, np.concatenate([positions for positions, _ in cut]))
            index = torch.from_numpy(numbers % self.plan.samples).to(part.inputs.device)
            draws = None
            if part.augment is not None:
                draws = torch.from_numpy(uniforms(numbers, part.draws, derive(self.seed, AUGMENT, epoch)))
                draws = draws.to(part.inputs.device)
            at = 0
            for first in range(0, len(cut), chunk):
                sizes = [sizes for _, sizes in cut[first : first + chunk]]
                lengths = [max(size, 1) for of_step in sizes for size in of_step]
                here = slice(at, at := at + sum(lengths))
                inputs, targets = self._gather(part, index[here], None if draws is None else draws[here])
                pieces = zip(inputs.split(lengths), targets.split(lengths), strict=True)
                for i, of_step in enumerate(sizes, begin + first):
                    micros = [MicroBatch(*next(pieces), size, self.rank) for size in of_step]
                    if position <= i and step < last_step:
                        yield Batch(step, self.plan.size_of(i), micros)
                        step += 1

    def _gather(self, part: TensorSplit, index: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs as the model gets them, and targets, of the samples `index`, on the device."""
        inputs, targets = part.inputs.index_select(0, index), part.targets.index_select(0, index)
        if draws is not None and part.augment is not None:
            inputs = part.augment(inputs, draws)
        if part.prepare is not None:
            inputs = part.prepare(inputs)
        inputs = as_numbers(inputs, part)
        return (inputs, targets) if inputs.device == self.device else to_device((inputs, targets), self.device)

    def _from_loader(self, part: DatasetSplit, first_step: int, last_step: int) -> Iterator[Batch]:
        """One DataLoader for the rest of the run, so that no epoch begins with idle workers."""
        numbered = self._numbered(first_step, last_step)
        key, size = partial(derive, self.seed, AUGMENT), self.plan.micro_size
        loaded = loading.drawn(part, numbered, key, self.workers, self.device, size)
        for step in range(first_step, last_step):
            size = self.plan.size_of(step % self.plan.steps_per_epoch)
            micros = []
            for micro_size in self.plan.micro_sizes(self.rank, size):
                inputs, targets = next(loaded)
                micros.append(MicroBatch(inputs, targets, micro_size, self.rank))
            yield Batch(step, size, micros)

    def _numbered(self, step: int, last_step: int) -> Iterator[tuple[int, list[int]]]:
        """The epoch and the sample numbers of each micro-batch, many of them numbered at once."""
        while step < last_step:
            epoch, position = divmod(step, self.plan.steps_per_epoch)
            at_once = max(1, NUMBERED // self.plan.micro_size)
            steps = min(at_once, self.plan.steps_per_epoch - position, last_step - step)
            cut = [self._positions(at) for at in range(position, position + steps)]
            numbers = self._order(epoch, np.concatenate([positions for positions, _ in cut])).tolist()
            at = 0
            for size in (size for _, sizes in cut for size in sizes):
                yield epoch, numbers[at : at + max(size, 1)]
                at += max(size, 1)
            step += steps


class ShardedStream:
    """The batches of several canonical shards of a global batch, for one rank.

    Args:
        streams: One per shard, in their order.
    """

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams

    def samples(self, step: int) -> np.ndarray:
        """[size] sample numbers of the global batch of a step, in order."""
        return self.streams[0].samples(step)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's batches of the steps first_step (inclusive) to last_step (exclusive)."""
        for together in zip(*(stream.batches(first_step, last_step) for stream in self.streams), strict=True):
            micros = [micro for batch in together for micro in batch.micros]
            yield Batch(together[0].step, together[0].size, micros)


def of_rank(
    part: TensorSplit | DatasetSplit,
    plan: BatchPlan,
    seed: int,
    ranks: Ranks,
    device: torch.device,
    workers: int | str,
    balanced: "Balanced | None" = None,
    kind: Callable[..., Stream] = Stream,
) -> Stream | ShardedStream:
    """The batches of one rank; arguments as for Stream, and what to make of them, where it is no plain Stream."""

    def stream(shard: int) -> Stream:
        return kind(part, plan, seed, shard, device, workers, balanced=balanced)

    if not plan.canonical:
        return stream(ranks.rank)
    count = plan.shards // ranks.world_size
    return ShardedStream([stream(ranks.rank * count + i) for i in range(count)])


def in_order(
    part: TensorSplit | DatasetSplit,
    rank: int,
    world_size: int,
    batch_size: int,
    device: torch.device,
    workers: int | str,
) -> Iterator[tuple[Any, Any]]:
    """A rank's contiguous share of a part, each sample once, in order and without augmentation.

    Args:
        part: What to read.
        rank: Whose share.
        world_size: Number of shares; they differ by at most one sample, and may be empty.
        batch_size: Most samples at once.
        device: Where the batches are put.
        workers: Processes that load samples of a DatasetSplit; see loading.choose_workers.
    """
    first, last = len(part) * rank // world_size, len(part) * (rank + 1) // world_size
    cuts = [(at, min(at + batch_size, last)) for at in range(first, last, batch_size)]
    if isinstance(part, TensorSplit):
        for start, stop in cuts:
            inputs = part.inputs[start:stop]
            # A copy lies at a fixed alignment, on which the last bits of a matrix product depend.
            inputs = inputs.clone() if part.prepare is None else part.prepare(inputs)
            yield to_device((as_numbers(inputs, part), part.targets[start:stop]), device)
        return
    yield from loading.in_order(part, cuts, workers, device)


def first_sample(part: TensorSplit | DatasetSplit) -> tuple[Any, Any]:
    """Inputs and targets of the first sample, as a batch of one on the CPU; leaves the generators as they are."""
    with loading.generators_kept():
        return next(in_order(part, 0, len(part), 1, torch.device("cpu"), 0))
