"""The order of samples: permutations in which any position is found in constant time and memory."""

from dataclasses import dataclass

import numpy as np

from launcher.batching.keys import ORDER, derive, derive_each, mix

ROUNDS = 8


@dataclass
class EpochPermutation:
    """Which of `size` samples stands at a position of an epoch: each once, every epoch in an order of its own."""

    size: int
    seed: int

    def draw(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """[n] int64 sample numbers at positions [n] in 0..size-1 of an epoch."""
        return permute(positions, self.size, derive(self.seed, ORDER, epoch))


def permute(positions: np.ndarray, size: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Where positions of 0..size-1 land in the permutation that a key names.

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
