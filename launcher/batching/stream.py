"""The global batches of a run: which samples are in each, and a rank's share of them on its device.

Nothing here has a state to save: to continue at any step is to ask for that step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching import loading
from launcher.batching.generators import generators_kept
from launcher.batching.keys import AUGMENT, derive, uniforms
from launcher.batching.plan import BatchPlan
from launcher.batching.sampling import EpochPermutation, Sampler
from launcher.batching.splits import DatasetSplit, TensorSplit, as_numbers
from launcher.batching.transfer import to_device
from launcher.distributed.ranks import Ranks

# In-memory data is gathered this much at a time. Memory of a megabyte is used again at once, where the pages of eight
# come new from the kernel each time: half the time of a small model's batch. A GPU likes fewer and larger copies.
GATHER_BYTES = {"cpu": 1 << 20, "cuda": 8 << 20}
NUMBER_BYTES = 1 << 18  # and numbered, with their uniform numbers, so much at a time
NUMBERED = 1 << 14  # samples of a Dataset, which have no uniform numbers


@dataclass(slots=True)
class MicroBatch:
    """What a device sees in one forward and backward."""

    inputs: Any  # [max(size, 1), ...] tensor, or a pytree of such tensors
    targets: Any  # [max(size, 1), ...]
    size: int  # samples that count; 0 for a placeholder
    shard: int = 0  # the piece of the global batch that it is part of: the rank's number, or that of a canonical shard


@dataclass(slots=True)
class Batch:
    """A rank's share of one global batch."""

    step: int  # optimizer updates done before this one
    size: int  # samples in the global batch, over all ranks
    micros: list[MicroBatch]


@dataclass(slots=True)
class Chunk:
    """Consecutive global batches, of which a rank gathers its samples at once."""

    step: int  # of the first one
    sizes: list[list[int]]  # of the micro-batches of each
    index: Tensor  # [n] the rank's samples in all of them
    draws: Tensor | None  # [n, draws] uniform numbers of each sample; None without augmentation


@dataclass(eq=False)
class Stream:
    """The global batches of a run, and a rank's share of each."""

    split: TensorSplit | DatasetSplit  # the training split
    plan: BatchPlan  # how a global batch is cut
    seed: int  # of the run
    shard: int  # whose share to deliver: a rank's or, with exact_across_devices, that of one of the canonical shards
    device: torch.device  # where the batches are put
    workers: int | str  # as for choose_workers
    sampler: Sampler | None = None  # the order of the samples; None: shuffled

    def __post_init__(self) -> None:
        self.order = self.sampler or EpochPermutation(self.plan.samples, self.seed)

    def samples(self, step: int) -> np.ndarray:
        """[size] sample numbers of the global batch of a step, in order: for who asks afterwards; see `batches`."""
        epoch, position = divmod(step, self.plan.steps_per_epoch)
        first = position * self.plan.global_size
        positions = np.arange(first, first + self.plan.size_of(position))
        return self.order.samples_at(epoch, positions) % self.plan.samples

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's batches of the steps first_step (inclusive) to last_step (exclusive)."""
        if isinstance(self.split, TensorSplit):
            return self._from_memory(self.split, first_step, last_step)
        return self._from_loader(self.split, first_step, last_step)

    def positions_of(self, step_in_epoch: int) -> tuple[np.ndarray, list[int]]:
        """Positions in the epoch of this rank's samples at a step of it, and the sizes of its micro-batches.

        A placeholder takes the first sample of the global batch.
        """
        size = self.plan.size_of(step_in_epoch)
        first, last = self.plan.share(self.shard, size)
        sizes = self.plan.micro_sizes(self.shard, size)
        start = step_in_epoch * self.plan.global_size
        if 0 not in sizes:
            return np.arange(start + first, start + last), sizes
        ranges, at = [], start + first
        for micro in sizes:
            ranges.append(np.arange(at, at + micro) if micro else np.array([start]))
            at += micro
        return np.concatenate(ranges), sizes

    def _sample_numbers(self, epoch: int, first: int, steps: int) -> tuple[np.ndarray, list[list[int]]]:
        """Number this rank's samples of some steps of an epoch at once, since a call costs as much for one as for many.

        The epoch may end before that many.

        Returns:
            The sample numbers of all steps one after the other (one that comes again in the epoch is a multiple of the
            number of samples higher), and the sizes of the micro-batches of each step.
        """
        last = min(first + steps, self.plan.steps_per_epoch)
        positions, sizes = zip(*(self.positions_of(at) for at in range(first, last)), strict=True)
        return self.order.samples_at(epoch, np.concatenate(positions)), list(sizes)

    def _from_memory(self, split: TensorSplit, first_step: int, last_step: int) -> Iterator[Batch]:
        """Number many batches at once, gather some of them at once, then cut them apart."""
        for chunk in self._chunks(split, first_step, last_step):
            inputs, targets = self._gather(split, chunk)
            for batch in self._cut(chunk, inputs, targets):
                if first_step <= batch.step < last_step:
                    yield batch

    def _chunks(self, split: TensorSplit, step: int, last_step: int) -> Iterator[Chunk]:
        """Chunks with all steps from `step` (inclusive) to `last_step` (exclusive), and some before and after them.

        They begin at the same places whatever step a run begins at: matrix kernels round differently at another
        alignment of the very same numbers, so a batch must lie at the same offset after a resume.
        """
        micro_batch = self.plan.global_size // self.plan.shards or 1
        gathered = GATHER_BYTES["cuda" if self.device.type == "cuda" else "cpu"]
        per_chunk = max(1, gathered // (4 * max(1, split.inputs[0].numel()) * micro_batch))
        per_block = per_chunk * max(1, NUMBER_BYTES // (4 * max(2, split.draws) * micro_batch * per_chunk))
        while step < last_step:
            epoch, position = divmod(step, self.plan.steps_per_epoch)
            step -= position % per_chunk
            numbers, sizes = self._sample_numbers(epoch, position - position % per_chunk, per_block)
            index = torch.from_numpy(numbers % self.plan.samples).to(split.inputs.device)
            draws = None
            if split.augment is not None:
                draws = torch.from_numpy(uniforms(numbers, split.draws, derive(self.seed, AUGMENT, epoch)))
                draws = draws.to(split.inputs.device)
            at = 0
            for first in range(0, len(sizes), per_chunk):
                of_chunk = sizes[first : first + per_chunk]
                here = slice(at, at := at + sum(max(size, 1) for of_step in of_chunk for size in of_step))
                yield Chunk(step + first, of_chunk, index[here], None if draws is None else draws[here])
            step += len(sizes)

    def _gather(self, split: TensorSplit, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Inputs as the model gets them, and targets, of the samples of a chunk, on the device."""
        inputs, targets = split.inputs.index_select(0, chunk.index), split.targets.index_select(0, chunk.index)
        if chunk.draws is not None and split.augment is not None:
            inputs = split.augment(inputs, chunk.draws)
        if split.prepare is not None:
            inputs = split.prepare(inputs)
        inputs = as_numbers(inputs, split)
        return (inputs, targets) if inputs.device == self.device else to_device((inputs, targets), self.device)

    def _cut(self, chunk: Chunk, inputs: Tensor, targets: Tensor) -> Iterator[Batch]:
        """The batches of a chunk whose samples are gathered, as views."""
        lengths = [max(size, 1) for of_step in chunk.sizes for size in of_step]
        pieces = zip(inputs.split(lengths), targets.split(lengths), strict=True)
        steps_per_epoch = self.plan.steps_per_epoch  # once: each batch is one step of the hot loop
        for step, of_step in enumerate(chunk.sizes, chunk.step):
            micros = [MicroBatch(*next(pieces), size, self.shard) for size in of_step]
            yield Batch(step, self.plan.size_of(step % steps_per_epoch), micros)

    def _from_loader(self, split: DatasetSplit, first_step: int, last_step: int) -> Iterator[Batch]:
        """One DataLoader for the rest of the run, so that no epoch begins with idle workers."""
        numbered = self._numbered_micro_batches(first_step, last_step)
        key, size = partial(derive, self.seed, AUGMENT), self.plan.micro_size
        loaded = loading.drawn(split, numbered, key, self.workers, self.device, size)
        for step in range(first_step, last_step):
            size = self.plan.size_of(step % self.plan.steps_per_epoch)
            micros = []
            for micro_size in self.plan.micro_sizes(self.shard, size):
                inputs, targets = next(loaded)
                micros.append(MicroBatch(inputs, targets, micro_size, self.shard))
            yield Batch(step, size, micros)

    def _numbered_micro_batches(self, step: int, last_step: int) -> Iterator[tuple[int, list[int]]]:
        """The epoch and the sample numbers of each micro-batch."""
        at_once = max(1, NUMBERED // self.plan.micro_size)
        while step < last_step:
            epoch, position = divmod(step, self.plan.steps_per_epoch)
            numbers, sizes = self._sample_numbers(epoch, position, min(at_once, last_step - step))
            listed = numbers.tolist()
            at = 0
            for size in (size for of_step in sizes for size in of_step):
                yield epoch, listed[at : (at := at + max(size, 1))]
            step += len(sizes)


@dataclass(eq=False)
class CanonicalStream:
    """The batches of several canonical shards of a global batch, for one rank."""

    streams: list[Stream]  # one per shard, in their order

    def samples(self, step: int) -> np.ndarray:
        """As Stream.samples."""
        return self.streams[0].samples(step)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """As Stream.batches."""
        for together in zip(*(stream.batches(first_step, last_step) for stream in self.streams), strict=True):
            micros = [micro for batch in together for micro in batch.micros]
            yield Batch(together[0].step, together[0].size, micros)


def of_rank(
    split: TensorSplit | DatasetSplit,
    plan: BatchPlan,
    seed: int,
    ranks: Ranks,
    device: torch.device,
    workers: int | str,
    sampler: Sampler | None = None,
    kind: Callable[..., Stream] = Stream,
) -> Stream | CanonicalStream:
    """The batches of one rank; arguments as for Stream, and what to make of them, where it is no plain Stream."""

    def stream(shard: int) -> Stream:
        return kind(split, plan, seed, shard, device, workers, sampler=sampler)

    if not plan.canonical:
        return stream(ranks.rank)
    count = plan.shards // ranks.world_size
    return CanonicalStream([stream(ranks.rank * count + i) for i in range(count)])


def in_order(
    split: TensorSplit | DatasetSplit,
    rank: int,
    world_size: int,
    batch_size: int,
    device: torch.device,
    workers: int | str,
) -> Iterator[tuple[Any, Any]]:
    """A rank's contiguous share of a split, each sample once, in order and without augmentation.

    Shares differ by at most one sample, and may be empty.

    Args:
        split: What to read.
        rank: Whose share.
        world_size: Number of shares.
        batch_size: Most samples at once.
        device: Where the batches are put.
        workers: As for choose_workers.
    """
    first, last = len(split) * rank // world_size, len(split) * (rank + 1) // world_size
    cuts = [(at, min(at + batch_size, last)) for at in range(first, last, batch_size)]
    if isinstance(split, TensorSplit):
        for start, stop in cuts:
            inputs = split.inputs[start:stop]
            # A copy lies at a fixed alignment, on which the last bits of a matrix product depend.
            inputs = inputs.clone() if split.prepare is None else split.prepare(inputs)
            yield to_device((as_numbers(inputs, split), split.targets[start:stop]), device)
        return
    yield from loading.in_order(split, cuts, workers, device)


def first_sample(split: TensorSplit | DatasetSplit) -> tuple[Any, Any]:
    """Inputs and targets of the first sample, as a batch of one on the CPU; leaves the generators as they are."""
    with generators_kept():
        return next(in_order(split, 0, len(split), 1, torch.device("cpu"), 0))
