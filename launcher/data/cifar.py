"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32 pixels (Krizhevsky 2009)."""

from typing import Any

import torch

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.core.locks import locked
from launcher.data.arguments import check_flag, check_folder, check_fraction, check_seed
from launcher.data.augmentation import augmentation
from launcher.data.images import StandardiseChannels, hold_out_images, images_in_memory
from launcher.data.source import Data

# Mean and deviation of red, green and blue over the 50,000 training images, which run from 0 to 255.
COLOURS = {
    10: ([125.31, 122.95, 113.87], [62.99, 62.09, 66.70]),
    100: ([129.30, 124.07, 112.43], [68.17, 65.39, 70.42]),
}


def load(
    root: str,
    download: bool,
    classes: int,
    validation: float,
    split_seed: int,
    flip: bool,
    shift: int,
    random_erasing: float,
    imbalance: float | None,
) -> Data:
    """Read CIFAR by torchvision, which checks MD5 sums: inputs [n, 3, 32, 32] uint8; it has its own test split.

    The settings are those of conf/data/cifar10.yaml; `root` holds the Python version of the data, `cifar-10-batches-py`
    or `cifar-100-python`.
    """
    if classes not in COLOURS or isinstance(classes, bool):
        raise ConfigError(f"data.classes: {classes!r} is neither 10 nor 100.")
    mean, std = COLOURS[classes]
    augment = augmentation(flip, shift, random_erasing, 32, mean)
    validation = check_fraction("data.validation", validation)
    check_seed("data.split_seed", split_seed)
    train, tested = read(root, check_flag("data.download", download), classes)
    (images, labels), test = (
        (torch.from_numpy(split.data).movedim(-1, 1).contiguous(), torch.tensor(split.targets))
        for split in (train, tested)
    )
    splits = hold_out_images(images, labels, validation, split_seed, imbalance)
    return images_in_memory(f"cifar{classes}", (*splits, test), StandardiseChannels(mean, std), augment, train.classes)


def read(root: Any, download: bool, classes: int) -> tuple[Any, Any]:
    """The training and the test split as torchvision's data sets, downloaded first where that is asked for.

    Ranks that start together wait for the first.
    """
    datasets = import_extra("torchvision.datasets", f"data=cifar{classes} is read by torchvision", "vision")
    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    folder = check_folder(root, f"that holds {kind.base_folder}")
    try:
        if download:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".download.lock"):
                kind(str(folder), download=True)
        return kind(str(folder), train=True), kind(str(folder), train=False)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data.root: {folder} has no whole {kind.base_folder} ({error}). Unpack {kind.url} there, or let "
            f"data.download=true download it (170 MB) into a directory of yours."
        ) from error
