"""Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels (Xiao, Rasul and Vollgraf 2017)."""

import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.core.errors import ConfigError
from launcher.core.extras import DISTRIBUTION, import_extra
from launcher.core.locks import locked
from launcher.data.arguments import check_flag, check_folder, check_fraction, check_seed
from launcher.data.augmentation import augmentation
from launcher.data.images import Standardise, hold_out_images, images_in_memory
from launcher.data.source import Data

MEAN, STD = 72.9404, 90.0212  # of the pixels of the 60,000 training images, which run from 0 to 255
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SHAPES = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}


def load(
    root: str,
    download: bool,
    validation: float,
    split_seed: int,
    flip: bool,
    shift: int,
    random_erasing: float,
    imbalance: float | None,
) -> Data:
    """Read Fashion-MNIST: inputs [n, 1, 28, 28] uint8, targets 0 .. 9; it has its own test split.

    The settings are those of conf/data/fashion_mnist.yaml; `root` has the four IDX files, zipped (.gz) or not.
    """
    augment = augmentation(flip, shift, random_erasing, 28, [MEAN])
    validation = check_fraction("data.validation", validation)
    check_seed("data.split_seed", split_seed)
    paths = find_files(root, check_flag("data.download", download))
    # 0.25 s, nearly all of it for unzipping the training images; four threads save a tenth of that.
    images, labels, test_images, test_labels = map(read_idx, paths, SHAPES.values())
    splits = hold_out_images(images, labels, validation, split_seed, imbalance)
    prepare = Standardise(MEAN, STD)
    return images_in_memory("fashion_mnist", (*splits, (test_images, test_labels)), prepare, augment, CLASSES)


def find_files(root: Any, download: bool) -> list[Path]:
    """The four files in the order of SHAPES, downloaded first where that is asked for.

    They may lie in `root` itself or where torchvision puts them, `root`/FashionMNIST/raw.
    """
    folder = check_folder(root, "with the Fashion-MNIST files")
    found = present(folder)
    if found is None and download:
        fetch(folder)
        found = present(folder)
    if found is None:
        raise ConfigError(
            f"data.root: {folder} has no {next(iter(SHAPES))}.gz or lacks another of the four files. On Debian "
            "and Ubuntu `apt install dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist; "
            "elsewhere data.download=true data.root=DIRECTORY downloads them (30 MB) into a directory of yours, by "
            f"torchvision (pip install '{DISTRIBUTION}[vision]')."
        )
    return found


def present(folder: Path) -> list[Path] | None:
    """The four files in the order of SHAPES; None where one is absent."""
    for place in (folder, folder / "FashionMNIST" / "raw"):
        paths = [next((p for p in (place / f"{n}.gz", place / n) if p.is_file()), None) for n in SHAPES]
        if all(paths):
            return [path for path in paths if path is not None]
    return None


def fetch(folder: Path) -> None:
    """Download the four files into a directory, by torchvision, which checks their MD5 sums.

    Ranks that start together wait for the first; a file appears whole or not at all.
    """
    why = "data.download: Fashion-MNIST is downloaded by torchvision"
    datasets = import_extra("torchvision.datasets", why, "vision")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".download.lock"):
            if present(folder) is not None:
                return
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
                datasets.FashionMNIST(temporary, download=True)
                for name in SHAPES:
                    os.replace(Path(temporary, "FashionMNIST", "raw", f"{name}.gz"), folder / f"{name}.gz")
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data.download: could not download Fashion-MNIST into data.root={folder}: {error}. "
            "Set data.root to a directory you can write, on a machine with internet access."
        ) from error


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """One IDX file of bytes, unzipped where it is a `.gz`: images [n, 1, height, width] uint8, or labels [n] int64."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = zlib.decompress(content, wbits=31)
    except (OSError, zlib.error) as error:
        raise ConfigError(f"data.root: cannot read {path}: {error}. Copy or download the file again.") from error
    header = np.array([0x0800 + len(shape), *shape], dtype=">i4").tobytes()
    values = np.frombuffer(content, dtype=np.uint8)[len(header) :]
    if not content.startswith(header) or values.size != np.prod(shape):
        raise ConfigError(
            f"data.root: {path} does not hold {' x '.join(map(str, shape))} bytes in IDX format (it is "
            f"{len(content)} bytes long); copy or download the file again."
        )
    tensor = torch.from_numpy(values.reshape(shape).copy())
    return tensor.long() if tensor.dim() == 1 else tensor.unsqueeze(1)
