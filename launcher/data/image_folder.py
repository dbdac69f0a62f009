"""A user's own images: one folder per split, in it one folder per class."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.core.extras import import_extra
from launcher.data.arguments import check_flag, check_folder, check_names, check_whole
from launcher.data.broken import without_broken
from launcher.data.folders import ENDINGS, Folders, find
from launcher.data.images import StandardiseChannels
from launcher.data.pillow import LOOK, check_bits, converted, look
from launcher.data.source import Data, Others
from launcher.data.splitting import split_off

Samples = list[tuple[str, int]]  # (file, class) of each image

AUGMENTS = ("none", "light", "randaugment", "trivial")


@dataclass(eq=False)
class FolderImages(Dataset):
    """Images read from files, one at a time."""

    samples: Samples
    transform: Callable[[Any], Tensor]  # image to the raw input [3, image_size, image_size] uint8
    bits: int | None = None  # that images of 16 bits use

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            image = read_image(path, self.bits)
        except Exception as error:  # Pillow raises a dozen kinds, of which some tell of a valid but huge image
            raise BrokenFile(f"{path} is no image that can be read: {error}") from error
        return self.transform(image), label


def load(
    root: str,
    image_size: int,
    crop: float,
    min_scale: float,
    flip: bool,
    augment: str,
    random_erasing: float,
    mean: Sequence[float],
    std: Sequence[float],
    validation_folders: Sequence[str],
    test_folders: Sequence[str],
    test: float,
    validation: float,
    split_seed: int,
    bits: int | None,
    on_error: str | None,
) -> Data:
    """Find the images under root/train and the folders of the other two splits, one folder per class.

    A split without a folder of its own is split off the training images; without a folder `train` the folders of the
    classes lie in root itself, and all three splits are split. Names of splits are taken in upper and lower case.
    Validation and test images are resized and cropped at the centre. Training images are cropped at random (Szegedy et
    al. 2015; not at all with min_scale=1), mirrored and changed further by `augment` and `random_erasing`; the random
    numbers come from the global generator of torch.

    The settings are those of conf/data/image_folder.yaml. `augment` is `none`; `light`: brightness, contrast and
    saturation up to 0.2 up or down; `randaugment`: two of 14 changes at strength 9 of 31 (Cubuk et al. 2019,
    arXiv:1909.13719); or `trivial`: one of them at any strength (Mueller and Hutter 2021, arXiv:2103.10158).
    `random_erasing` paints over a rectangle in the mean colour (Zhong et al. 2017, arXiv:1708.04896). Files that cannot
    be read are found first and end the start (`on_error` stop) or are left out (skip).

    Raises:
        ConfigError: A folder is missing or empty, a split has a class that training does not have, a file cannot be
            read, a setting is outside its range, or torchvision is missing.
    """
    _torchvision()  # without it nothing here can be read
    _check_pictures(image_size, crop, min_scale, mean, std)
    check_flag("data.flip", flip)
    check_bits(bits)
    if augment not in AUGMENTS:
        raise ConfigError(f"data.augment: {augment!r} is unknown; pick one of {', '.join(AUGMENTS)}.")
    for setting, names in (("data.validation_folders", validation_folders), ("data.test_folders", test_folders)):
        check_names(setting, names, f"; give names such as {setting}=[val].")
    place = check_folder(root, "that holds the folder train")
    classes, samples, notes = find(place, validation_folders, test_folders)
    notes += _leave_out_broken(samples, classes, place, on_error)
    for name, share in (("test", test), ("validation", validation)):
        if name not in samples:
            samples["train"], samples[name] = _held_out(name, samples["train"], share, split_seed)
    shown = samples["train"][:: -(-len(samples["train"]) // LOOK)]
    notes += look(_openable(path for path, _ in shown), bits)[1]
    centre = _centre_crop(image_size, crop)
    random = _random_crop(image_size, centre, min_scale, flip, augment)
    if random_erasing:
        random.append(_torchvision().RandomErasing(random_erasing, value=[255 * m for m in mean]))
    # A whole batch is standardised at once, where the model is: per image it takes longer than reading a small one.
    standardise = StandardiseChannels([255 * m for m in mean], [255 * s for s in std])

    def split(name: str, steps: list[Any]) -> DatasetSplit:
        dataset, plain = (FolderImages(samples[name], _torchvision().Compose(some), bits) for some in (steps, centre))
        return DatasetSplit(dataset, _labels(samples[name]), standardise, plain=plain)

    return Data(
        name="image_folder",
        task="classification",
        input_shape=(3, image_size, image_size),
        num_outputs=len(classes),
        train=split("train", random),
        validation=split("validation", centre),
        test=split("test", centre),
        class_names=classes,
        notes=notes,
        reader={
            "_target_": "launcher.data.image_folder.read_alike",
            "classes": classes,
            "image_size": image_size,
            "crop": crop,
            "mean": list(mean),
            "std": list(std),
            "bits": bits,
        },
    )


def _leave_out_broken(samples: dict[str, Samples], classes: list[str], root: Path, on_error: str | None) -> list[str]:
    """Take the files that cannot be read out of the samples of each split; lines about them for the log."""
    broken, notes = without_broken([path for part in samples.values() for path, _ in part], root, on_error)
    for name in samples if broken else ():
        samples[name] = [sample for sample in samples[name] if sample[0] not in broken]
        there = {label for _, label in samples[name]}
        for label in range(len(classes)) if name == "train" else ():
            if label not in there:
                raise ConfigError(f"data.on_error: no image of the class {classes[label]!r} of train can be read.")
        if not there:
            raise ConfigError(f"data.on_error: no image of the split {name} can be read.")
    return notes


def _openable(paths: Iterable[str]) -> Iterator[Any]:
    """Images that can be opened; of the others the run tells when their turn comes."""
    from PIL import Image

    for path in paths:
        with contextlib.suppress(Exception), Image.open(path) as image:
            yield image


def _check_pictures(image_size: Any, crop: Any, min_scale: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check how images become the model's inputs."""
    check_whole("data.image_size", image_size, "side in pixels; it must be an integer >= 1")
    for setting, share in (("data.crop", crop), ("data.min_scale", min_scale)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"{setting}: {share!r} is no share; it must be in (0, 1].")
    for setting, colours in (("data.mean", mean), ("data.std", std)):
        if isinstance(colours, str) or not isinstance(colours, Sequence) or len(colours) != 3:
            raise ConfigError(f"{setting}: {colours!r} is not three numbers, one each for red, green and blue.")
    if min(std) <= 0:
        raise ConfigError(f"data.std: {list(std)} has a value that is not above 0.")


def _torchvision() -> Any:
    return import_extra("torchvision.transforms.v2", "data=image_folder reads images with torchvision", "vision")


def _centre_crop(image_size: int, crop: float) -> list[Any]:
    """Steps to the centre of an image, as a tensor."""
    steps = _torchvision()
    return [steps.Resize(round(image_size / crop)), steps.CenterCrop(image_size), steps.PILToTensor()]


def _random_crop(image_size: int, centre: list[Any], min_scale: float, flip: bool, augment: str) -> list[Any]:
    """Steps to a random piece of an image, changed at random, as a tensor."""
    transforms = _torchvision()
    *steps, to_tensor = centre
    if min_scale < 1:
        steps = [transforms.RandomResizedCrop(image_size, scale=(min_scale, 1.0))]
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    if augment == "light":
        steps.append(transforms.ColorJitter(0.2, 0.2, 0.2))
    elif augment == "randaugment":
        steps.append(transforms.RandAugment())
    elif augment == "trivial":
        steps.append(transforms.TrivialAugmentWide())
    return [*steps, to_tensor]


def _held_out(name: str, samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Images that stay to train on, and those of a split that has no folder."""
    labels = _labels(samples)
    what = f"{len(labels)} images of {len(labels.unique())} classes"
    kept, out = split_off(name, len(labels), share, seed, labels, what)
    return [samples[i] for i in kept.tolist()], [samples[i] for i in out.tolist()]


def _labels(samples: Samples) -> Tensor:
    return torch.tensor([label for _, label in samples])


def read_alike(
    path: str | Sequence[str],
    classes: list[str],
    image_size: int,
    crop: float,
    mean: list[float],
    std: list[float],
    bits: int | None = None,
) -> Others:
    """Find other images, to be prepared as the validation images of a run, by its classes and settings.

    `path` is an image, a directory (searched at any depth), a text file (.txt) with the path of an image on each line,
    or a list of images. They count as labelled where each lies in a directory named as its class.

    Raises:
        ConfigError: There is no such file, or no image.
    """
    if isinstance(path, str):
        place = Path(path).expanduser()
        if place.is_dir():
            files = [Path(file) for file in Folders(place).images(place)]
        elif place.suffix == ".txt" and place.is_file():
            files = [Path(line.strip()) for line in place.read_text().splitlines() if line.strip()]
        else:
            files = [place]
    else:
        files = [Path(str(file)).expanduser() for file in path]
    if not files:
        raise ConfigError(f"input: {path} has no image ({', '.join(ENDINGS)}).")
    if absent := [file for file in files if not file.is_file()]:
        raise ConfigError(f"input: there is no file {absent[0]}; name an image, a directory or a list (.txt) of them.")
    labelled = all(file.parent.name in classes for file in files)
    samples = [(str(file), classes.index(file.parent.name) if labelled else 0) for file in files]
    dataset = FolderImages(samples, _torchvision().Compose(_centre_crop(image_size, crop)), bits)
    standardise = StandardiseChannels([255 * m for m in mean], [255 * s for s in std])
    return Others(DatasetSplit(dataset, _labels(samples), standardise), [str(file) for file in files], labelled)


def read_image(path: str, bits: int | None = None) -> Any:
    """The image in a file, as RGB, whatever its own mode."""
    from PIL import Image

    with Image.open(path) as image:
        return converted(image, "RGB", bits)
