"""Images in memory: scaling, flips and shifts of a batch, and a long tail of classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from launcher.data import check_flag
from launcher.errors import ConfigError


@dataclass
class Standardise:
    """Raw images [b, ...], uint8 or float32, to (images - mean) / std in float32.

    Args:
        mean: Mean of the raw values.
        std: Standard deviation of the raw values, above 0.
    """

    mean: float
    std: float

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a batch, elementwise."""
        # One copy, then in place: raw.sub(mean) makes up its type on the way, at four to ten times the time.
        return raw.to(torch.float32, copy=True).sub_(self.mean).mul_(1 / self.std)


@dataclass
class StandardiseChannels:
    """Raw images [b, channels, ...], uint8 or float32, to float32, each channel with a mean and deviation of its own.

    Args:
        mean: Mean of the raw values of each channel.
        std: Standard deviation of the raw values of each channel, above 0.
    """

    mean: list[float]
    std: list[float]

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a batch, elementwise."""
        images = raw.to(torch.float32, copy=True)
        for channel, mean, std in zip(images.unbind(1), self.mean, self.std, strict=True):
            channel.sub_(mean).mul_(1 / std)
        return images


@dataclass
class FlipAndShift:
    """Mirror an image left to right in half of the cases, and shift it by whole pixels; zeros move in.

    Both are draws of the sample's own uniform numbers: vertical shift, horizontal shift, flip.

    Args:
        flip: Mirror at all.
        shift: Most pixels to shift by, in each of the four directions; every distance is equally likely.
    """

    flip: bool
    shift: int

    @property
    def draws(self) -> int:
        """Uniform numbers per sample."""
        return 2 * (self.shift > 0) + self.flip

    def __call__(self, raw: Tensor, uniforms: Tensor) -> Tensor:
        """Move images [b, channels, height, width] by uniforms [b, draws] in [0, 1)."""
        if self.flip:
            raw = torch.where(uniforms[:, -1].lt(0.5)[:, None, None, None], raw.flip(-1), raw)
        if self.shift:
            height, width = raw.shape[-2:]
            # Every window of the padded image is a view; indexing copies the chosen one of each sample, once.
            windows = pad(raw, (self.shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            at = uniforms[:, :2].mul(2 * self.shift + 1).long()
            raw = windows[torch.arange(len(raw), device=raw.device), :, at[:, 0], at[:, 1]]
        return raw


def flip_and_shift(flip: Any, shift: Any, side: int) -> FlipAndShift | None:
    """The augmentation that the settings `data.flip` and `data.shift` ask for; None for none.

    Raises:
        ConfigError: flip is no boolean, or shift no integer in [0, side).
    """
    check_flag("data.flip", flip)
    if isinstance(shift, bool) or not isinstance(shift, int) or not 0 <= shift < side:
        raise ConfigError(f"data.shift: {shift!r} is no number of pixels in [0, {side - 1}]; 0 is for none.")
    return FlipAndShift(flip, shift) if flip or shift else None


def long_tail(labels: Tensor, imbalance: Any, seed: int) -> Tensor:
    """Samples that remain where the classes are to thin out exponentially, first to last.

    Class i of k keeps the share imbalance ** (-i / (k - 1)) of its samples, rounded down and at least one:
    the profile of Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of Samples", section 5.1.

    Args:
        labels: [n] int64 classes 0 .. k - 1.
        imbalance: Largest class over the smallest, at least 1, where the classes were of one size.
        seed: Seed of the choice within each class.

    Returns:
        Indices that stay, ascending.

    Raises:
        ConfigError: imbalance is below 1.
    """
    if isinstance(imbalance, bool) or not isinstance(imbalance, int | float) or not 1 <= imbalance < float("inf"):
        raise ConfigError(
            f"data.imbalance: {imbalance!r} is no ratio of the largest to the smallest class; "
            "it must be a number >= 1, such as 50, or null to keep every sample."
        )
    order = np.random.RandomState(seed).permutation(len(labels))
    classes = labels.numpy()[order]
    counts = np.bincount(classes)
    stay = []
    for i, count in enumerate(counts):
        share = imbalance ** (-i / max(len(counts) - 1, 1))
        stay.append(order[classes == i][: max(1, int(count * share))])
    return torch.from_numpy(np.sort(np.concatenate(stay)))
