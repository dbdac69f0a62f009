"""Images in memory: scaled values, a long tail of classes, and the data source that they make."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.data.source import Data
from launcher.data.splitting import hold_out


@dataclass
class Standardise:
    """Raw images [b, ...], uint8 or float32, to (images - mean) / std in float32."""

    mean: float  # of the raw values
    std: float  # of the raw values, above 0

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a batch, elementwise."""
        # One copy, then in place: raw.sub(mean) makes up its type on the way, at four to ten times the time.
        return raw.to(torch.float32, copy=True).sub_(self.mean).mul_(1 / self.std)


@dataclass
class StandardiseChannels:
    """Raw images [b, channels, ...] as Standardise, each channel with a mean and deviation of its own."""

    mean: list[float]
    std: list[float]

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a batch, elementwise."""
        images = raw.to(torch.float32, copy=True)
        for channel, mean, std in zip(images.unbind(1), self.mean, self.std, strict=True):
            channel.sub_(mean).mul_(1 / std)
        return images


def long_tail(labels: Tensor, imbalance: Any, seed: int) -> Tensor:
    """Indices, ascending, of the samples that remain where the classes are to thin out exponentially, first to last.

    Class i of k keeps the share imbalance ** (-i / (k - 1)) of its samples, rounded down and at least one:
    the profile of Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of Samples", section 5.1.
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


def hold_out_images(
    images: Tensor, labels: Tensor, validation: float, split_seed: int, imbalance: float | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels to train on and to validate by, of a data set that has a test split of its own.

    Images are [n, channels, height, width], labels [n] int64, `imbalance` as of `long_tail`; None keeps every image.
    """
    kept, validated = hold_out(len(labels), validation, split_seed, labels)
    if imbalance is not None:
        kept = kept[long_tail(labels[kept], imbalance, split_seed)]
    return (images[kept], labels[kept]), (images[validated], labels[validated])


def images_in_memory(
    name: str, splits: Iterable[tuple[Tensor, Tensor]], prepare: Any, augment: Any, class_names: list[str]
) -> Data:
    """A data source of images in memory, of which those to train on are augmented.

    `splits` has images [n, channels, height, width] uint8 and labels [n] to train on, to validate by and to test;
    `prepare` and `augment` (with its `draws`; None for none) are those of TensorSplit.
    """
    train, validation, test = splits
    return Data(
        name=name,
        task="classification",
        input_shape=tuple(train[0].shape[1:]),
        num_outputs=len(class_names),
        train=TensorSplit(*train, prepare, augment, augment.draws if augment else 0),
        validation=TensorSplit(*validation, prepare),
        test=TensorSplit(*test, prepare),
        class_names=class_names,
    )
