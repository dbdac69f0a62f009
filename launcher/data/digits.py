"""Handwritten digits, 8x8 pixels: 1,797 images that come with scikit-learn (Alpaydin and Kaynak 1998)."""

import torch

from launcher.batching.splits import TensorSplit
from launcher.data.images import Standardise, flip_and_shift, long_tail
from launcher.data.shipped import read_shipped
from launcher.data.source import Data, split_three

MEAN, STD = 4.8842, 6.0168  # of all pixels, which run from 0 to 16


def load(test: float, validation: float, split_seed: int, flip: bool, shift: int, imbalance: float | None) -> Data:
    """Read the digits: inputs [n, 1, 8, 8] uint8 in 0 .. 16, targets 0 .. 9.

    Args:
        test: Share of all images for the test part, in (0, 1).
        validation: Share of the rest for the validation part, in (0, 1).
        split_seed: Seed of the split.
        flip: Mirror half of the training images.
        shift: Most pixels to shift a training image by, in [0, 7].
        imbalance: Largest over smallest class of the training part (see `long_tail`); None keeps every image.

    Raises:
        ConfigError: A setting is outside its range.
    """
    augment = flip_and_shift(flip, shift, side=8)
    table = torch.from_numpy(read_shipped("digits.csv.gz"))
    images, labels = table[:, :64].to(torch.uint8).view(-1, 1, 8, 8), table[:, 64].long()
    train, validated, tested = split_three(len(labels), test, validation, split_seed, labels)
    if imbalance is not None:
        train = train[long_tail(labels[train], imbalance, split_seed)]
    prepare = Standardise(MEAN, STD)
    return Data(
        name="digits",
        task="classification",
        input_shape=(1, 8, 8),
        num_outputs=10,
        train=TensorSplit(images[train], labels[train], prepare, augment, augment.draws if augment else 0),
        validation=TensorSplit(images[validated], labels[validated], prepare),
        test=TensorSplit(images[tested], labels[tested], prepare),
        class_names=[str(digit) for digit in range(10)],
    )
