"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32 pixels (Krizhevsky 2009)."""

import fcntl
from pathlib import Path
from typing import Any

import torch

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.data.images import StandardiseChannels, augmentation, long_tail
from launcher.data.source import Data, check_flag, check_fraction, check_seed, split

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
    """Read CIFAR by torchvision, which checks MD5 sums: inputs [n, 3, 32, 32] uint8; it has its own test part.

    Args:
        root: Directory that holds `cifar-10-batches-py` or `cifar-100-python`, the Python version of the data.
        download: Have torchvision download it into `root` where it is absent.
        classes: 10 or 100.
        validation: Share of the 50,000 training images for the validation part, in (0, 1).
        split_seed: Seed of the split.
        flip: Mirror half of the training images.
        shift: Most pixels to shift a training image by, in [0, 31].
        random_erasing: Share of the training images in which a rectangle is painted over in the mean colour, in [0, 1].
        imbalance: Largest over smallest class of the training part (see `long_tail`); None keeps every image.

    Raises:
        ConfigError: The files are absent or damaged, torchvision is missing, or a setting is outside its range.
    """
    if classes not in COLOURS or isinstance(classes, bool):
        raise ConfigError(f"data.classes: {classes!r} is neither 10 nor 100.")
    mean, std = COLOURS[classes]
    augment = augmentation(flip, shift, random_erasing, 32, mean)
    validation = check_fraction("data.validation", validation)
    check_seed("data.split_seed", split_seed)
    train, tested = read(root, check_flag("data.download", download), classes)
    images, labels = (torch.from_numpy(train.data).movedim(-1, 1).contiguous(), torch.tensor(train.targets))
    kept, validated = split(len(labels), validation, split_seed, labels)
    if imbalance is not None:
        kept = kept[long_tail(labels[kept], imbalance, split_seed)]
    prepare = StandardiseChannels(mean, std)
    return Data(
        name=f"cifar{classes}",
        task="classification",
        input_shape=(3, 32, 32),
        num_outputs=classes,
        train=TensorSplit(images[kept], labels[kept], prepare, augment, augment.draws if augment else 0),
        validation=TensorSplit(images[validated], labels[validated], prepare),
        test=TensorSplit(
            torch.from_numpy(tested.data).movedim(-1, 1).contiguous(), torch.tensor(tested.targets), prepare
        ),
        class_names=train.classes,
    )


def read(root: Any, download: bool, classes: int) -> tuple[Any, Any]:
    """The training and the test part as torchvision's data sets, downloaded first where that is asked for.

    Ranks that start together wait for the first.

    Raises:
        ConfigError: They are absent and not to be downloaded, or cannot be.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ConfigError(
            f"data=cifar{classes} is read by torchvision, which does not import ({error}): "
            "pip install 'hydra-accelerate-launcher[vision]'"
        ) from error
    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    if not root or not isinstance(root, str):
        raise ConfigError(f"data.root: {root!r} is no directory; name the one that holds {kind.base_folder}.")
    folder = Path(root).expanduser()
    try:
        if download:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".download.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                kind(str(folder), download=True)
        return kind(str(folder), train=True), kind(str(folder), train=False)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data.root: {folder} has no whole {kind.base_folder} ({error}). Unpack {kind.url} there, or let "
            f"data.download=true download it (170 MB) into a directory of yours."
        ) from error
