"""Keys of random numbers: 64 bits that are a function of what the numbers are for."""

import numpy as np

# What a random number is for: each purpose has numbers of its own. Initial weights have torch's own generator.
ORDER, AUGMENT, DROPOUT, MIX, HOOKS, CLASSES, SHARDS = 1, 2, 3, 4, 5, 16, 17


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014), over uint64 with wrap-around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derive(*numbers: int) -> int:
    """A 64-bit key that is a function of all the numbers and of their order."""
    key = 0
    for number in numbers:
        key = (key + (number & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        key ^= key >> 31
    return key


def derive_each(keys: np.ndarray, *numbers: np.ndarray | int) -> np.ndarray:
    """[n] uint64 keys, each followed by one of each of the numbers: derive(*before, a, b) of keys derive(*before)."""
    for number in numbers:
        keys = mix(keys + np.asarray(number).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return keys


def uniforms(samples: np.ndarray, draws: int, key: int) -> np.ndarray:
    """[n, draws] uniform numbers of samples [n], the same whatever batch, rank or worker a sample is in.

    They are float32 in [0, 1), multiples of 2**-24, of the series that a key names, such as derive(seed, AUGMENT,
    epoch).
    """
    counters = np.asarray(samples).astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
    bits = mix(mix(counters + np.uint64(key)) + np.uint64(key))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
