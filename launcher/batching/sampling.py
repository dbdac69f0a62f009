"""The shuffle, in place of a DistributedSampler: which sample stands at a position of an epoch.

Any position is found in constant time and memory, so that a run resumes at any step without a state.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from launcher.batching.keys import CLASSES, ORDER, derive, derive_each, mix
from launcher.core.errors import ConfigError

if TYPE_CHECKING:
    from launcher.data.source import Data

ROUNDS = 8  # of the Feistel network
SORTED = 50  # batches whose samples are sorted together; as many as in transformers' LengthGroupedSampler


class Sampler(Protocol):
    """An order of samples: a function of (seed, epoch, position), the same on every rank, with no state."""

    def samples_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Which samples stand at positions [n] of an epoch, each in 0..samples-1, the first being 0.

        Returns:
            [n] int64: the number of the sample, plus the number of all samples times how often it has come before in
            this epoch, so that a sample that comes again is augmented in another way.
        """


@dataclass
class EpochPermutation:
    """The order of sampling=shuffle: each of `size` samples once, every epoch in an order of its own."""

    size: int
    seed: int

    def samples_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """See `Sampler`; no sample comes again."""
        return permute(positions, self.size, derive(self.seed, ORDER, epoch))


def permute(positions: np.ndarray, size: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Where positions of 0..size-1 land in the permutation that a key (a hash of seed and epoch) names.

    A Feistel network over the smallest power of two that holds `size`, walked until the value falls inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): constant time and memory per position,
    whatever the size.

    Args:
        positions: [n] integers in 0..size-1.
        size: Number of samples, 1 to 2**52: one for all positions, or one for each, [n].
        key: Names the permutation, 0 to 2**64-1: one for all positions, or one for each, [n] uint64.

    Returns:
        [n] int64 sample numbers.
    """
    one, sizes, keys = np.uint64(1), np.asarray(size, np.uint64), np.asarray(key, np.uint64)
    bits = np.maximum(np.frexp((sizes - one).astype(np.float64))[1], 2).astype(np.uint64)
    low_bits = bits // np.uint64(2)
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    round_keys = derive_each(np.zeros((1, 1), np.uint64), keys, np.arange(ROUNDS)[:, None])  # [ROUNDS, 1 or n]
    round_keys = round_keys if keys.ndim else round_keys[:, 0]
    values = np.asarray(positions).astype(np.uint64)
    outside, moving = np.arange(len(values)), values
    while len(outside):
        low, high = moving & low_mask, moving >> low_bits
        for even, odd in zip(round_keys[::2], round_keys[1::2], strict=True):
            high = high ^ (mix(low + even) & high_mask)
            low = low ^ (mix(high + odd) & low_mask)
        moving = (high << low_bits) | low
        values[outside] = moving
        still = moving >= sizes
        outside, moving = outside[still], moving[still]
        if sizes.ndim:
            sizes, low_bits, low_mask, high_mask = (of[still] for of in (sizes, low_bits, low_mask, high_mask))
        if keys.ndim:
            round_keys = round_keys[:, still]
    return values.astype(np.int64)


class Balanced:
    """The order of sampling=balanced: an epoch in which every class comes equally often.

    Of the n positions of an epoch each of the k classes gets n / k, to within one, in an order that a keyed permutation
    names. A class goes through its samples in cycles that run on over the epochs, each in an order of its own: those of
    a small class come several times an epoch, equally often to within one; of a large class each epoch takes the next
    ones. Any position is found in constant time.

    Args:
        data: For the labels of its training split. A class without a sample there is left out.
        seed: Of the run.

    Raises:
        ConfigError: The task has no classes, or the labels are not known without reading every sample.
    """

    def __init__(self, data: "Data", seed: int) -> None:
        targets = data.train.targets
        if data.task != "classification" or targets is None or targets.dim() != 1:
            why = f"is a {data.task} task" if data.task != "classification" else "does not tell one label per sample"
            raise ConfigError(f"sampling=balanced: data={data.name} {why}. Use sampling=shuffle.")
        labels = targets.cpu().numpy()
        counts = np.bincount(labels)
        self.seed, self.size = seed, len(labels)
        self._sizes = counts[counts > 0]
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._members = np.argsort(labels, kind="stable")  # the samples, class by class
        self._quota = -(-self.size // len(self._sizes))

    def samples_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """See `Sampler`."""
        classes = len(self._sizes)
        key = derive(self.seed, CLASSES, epoch)
        turn, place = np.divmod(permute(positions, self.size, key), classes)
        chosen = permute(place, classes, derive(key, classes))  # else the first classes would always get the one more
        sizes, begun = self._sizes[chosen], epoch * self._quota
        cycle, member = np.divmod(begun + turn, sizes)
        keys = derive_each(np.full(len(chosen), derive(self.seed, CLASSES), dtype=np.uint64), chosen, cycle)
        sample = self._members[self._starts[chosen] + permute(member, sizes, keys)]
        return sample + self.size * (cycle - begun // sizes)


class GroupedByLength:
    """The order of sampling=group_by_length: samples of like length in a batch, which then has little to fill up.

    As transformers' LengthGroupedSampler: the samples of 50 batches, drawn at random, are sorted by length and cut into
    batches, whose order is drawn anew, so that it tells nothing of their lengths. To find a position takes the sorting
    of its 50 batches, whatever the size of the data.

    Args:
        data: For the lengths of its training samples.
        seed: Of the run.
        batch: Samples of a global batch.

    Raises:
        ConfigError: The data does not tell the lengths.
    """

    def __init__(self, data: "Data", seed: int, batch: int) -> None:
        lengths = getattr(data.train, "lengths", None)
        if lengths is None:
            raise ConfigError(
                f"sampling=group_by_length: data={data.name} does not tell the lengths of its samples (a DatasetSplit "
                "has `lengths`), or all have one. Use sampling=shuffle."
            )
        self.seed, self.batch, self.lengths = seed, batch, lengths.numpy()

    def samples_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """See `Sampler`; no sample comes again."""
        positions = np.asarray(positions)
        found, sort = np.empty(len(positions), np.int64), SORTED * self.batch
        pieces = positions // sort
        for piece in np.unique(pieces):
            here = pieces == piece
            found[here] = self._sorted(epoch, int(piece), sort)[positions[here] - piece * sort]
        return found

    def _sorted(self, epoch: int, piece: int, sort: int) -> np.ndarray:
        """The samples of some batches, batch after batch, those of each from the longest to the shortest."""
        size, key = len(self.lengths), derive(self.seed, ORDER, epoch)
        drawn = permute(np.arange(piece * sort, min((piece + 1) * sort, size)), size, key)
        drawn = drawn[np.argsort(-self.lengths[drawn], kind="stable")]
        whole = len(drawn) // self.batch  # what is left at the end of an epoch stays there
        if whole < 2:
            return drawn
        order = permute(np.arange(whole), whole, derive(key, piece))
        batches = drawn[: whole * self.batch].reshape(whole, self.batch)[order]
        return np.concatenate([batches.reshape(-1), drawn[whole * self.batch :]])
