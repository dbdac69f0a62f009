"""Which samples are held out: the same for the same seed everywhere, each class alike."""

import numpy as np
import torch
from torch import Tensor

from launcher.core.errors import ConfigError
from launcher.data.arguments import check_fraction, check_seed


def hold_out(n: int, fraction: float, seed: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cut samples into those to keep and those to hold out, the same for the same arguments everywhere.

    Args:
        n: Number of samples, at least 2.
        fraction: Share to hold out, in (0, 1): round(n * fraction) samples, at least 1 and at most n - 1.
        seed: Seed of the choice, in [0, 2**32).
        labels: [n] classes. Where given, each class gives its share, to within one sample, and keeps at least
            one; fewer are held out where that leaves no choice.

    Returns:
        Indices kept and indices held out, both int64 and ascending.
    """
    # NumPy promises that the stream of RandomState never changes; torch.randperm's has changed before.
    order = np.random.RandomState(seed).permutation(n)
    wanted = min(max(1, round(n * fraction)), n - 1)
    if labels is None:
        out = order[:wanted]
    else:
        classes = labels.numpy()[order]
        values, counts = np.unique(classes, return_counts=True)
        exact = counts * (wanted / n)
        quota = np.floor(exact).astype(np.int64)
        # The samples left over go to the classes with the largest remainder; a tie to the earlier class.
        able = np.flatnonzero(quota + 1 < counts)
        by_remainder = able[np.argsort(-(exact - quota)[able], kind="stable")]
        quota[by_remainder[: wanted - quota.sum()]] += 1
        out = np.concatenate([order[classes == v][:q] for v, q in zip(values, quota, strict=True)])
    held_out = np.zeros(n, dtype=bool)
    held_out[out] = True
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))


def split_off(split: str, n: int, share: float, seed: int, labels: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    """Cut a split that the data do not have off their training samples; see `hold_out`.

    Args:
        split: Its name.
        n: Number of training samples.
        share: Share of them.
        seed: Seed of the choice.
        labels: [n] classes, to cut each class alike.
        what: What the samples are, for messages.

    Raises:
        ConfigError: The share or the seed is outside its range, or there are too few samples.
    """
    share, seed = check_fraction(f"data.{split}", share), check_seed("data.split_seed", seed)
    kept, out = hold_out(n, share, seed, labels) if n > 1 else (torch.arange(n), torch.arange(0))
    if len(out) == 0:
        each = "" if labels is None else ", at least two of each class"
        raise ConfigError(f"data.{split}: {what} leave none to split off; give more of them{each}.")
    return kept, out


def split_three(
    n: int, test: float, validation: float, seed: int, labels: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut n samples into training, validation and test indices.

    Args:
        n: Number of samples.
        test: Share of all samples for the test split, in (0, 1).
        validation: Share of what then remains for the validation split, in (0, 1).
        seed: Seed of both choices.
        labels: [n] classes, to cut each class alike.

    Raises:
        ConfigError: A share or the seed is outside its range, or there are too few samples.
    """
    test, validation = check_fraction("data.test", test), check_fraction("data.validation", validation)
    seed = check_seed("data.split_seed", seed)
    if n < 3:
        raise ConfigError(f"data: {n} samples are too few for a training, a validation and a test split.")
    rest, tested = hold_out(n, test, seed, labels)
    if len(rest) < 2:
        raise ConfigError(f"data.test: {test} of {n} samples leaves {len(rest)}, too few to train and to validate.")
    kept, validated = hold_out(len(rest), validation, seed, None if labels is None else labels[rest])
    if len(tested) == 0 or len(validated) == 0:
        raise ConfigError(
            f"data: {n} samples give {len(kept)} to train, {len(validated)} to validate, {len(tested)} to test, "
            "since each class keeps one to train; give more samples per class."
        )
    return rest[kept], rest[validated], tested
