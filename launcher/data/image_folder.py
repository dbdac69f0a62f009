"""A user's own images: one folder per part, in it one folder per class."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.folders import ENDINGS, Folders
from launcher.data.images import LOOK, StandardiseChannels, check_bits, check_erasing, converted, look
from launcher.data.source import Data, Others, check_flag, check_fraction, check_seed, split
from launcher.data.table import doubts

AUGMENTS = ("none", "light", "randaugment", "trivial")
TRAIN = ("train", "training")


class FolderImages(Dataset):
    """Images read from files, one at a time.

    Args:
        samples: (file, class) of each image.
        loader: File to image.
        transform: Image to the raw input [3, image_size, image_size] uint8.
    """

    def __init__(
        self,
        samples: list[tuple[str, int]],
        loader: Callable[[str], Any],
        transform: Callable[[Any], Tensor],
    ) -> None:
        self.samples = samples
        self.loader = loader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            image = self.loader(path)
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
) -> Data:
    """Find the images under root/train and the folders of the other two parts, one folder per class.

    A part without a folder of its own is split off the training images; without a folder `train` the folders of the
    classes lie in root itself, and all three parts are split. Names of parts are taken in upper and lower case.
    Validation and test images are resized and cropped at the centre. Training images are cropped at random, mirrored
    and changed further by `augment` and `random_erasing`; the random numbers come from the global generator of torch.

    Args:
        root: Directory with the folder `train`, or with a folder for each class.
        image_size: Side of the square that the model gets, in pixels.
        crop: Side of the centre crop over the shorter side of the image, in (0, 1].
        min_scale: Smallest share of the area that a random crop keeps (Szegedy et al. 2015), in (0, 1]; 1 for
            the centre crop in training too.
        flip: Mirror half of the training images.
        augment: `none`; `light`: brightness, contrast and saturation up to 0.2 up or down; `randaugment`: two of 14
            changes at strength 9 of 31 (Cubuk et al. 2019, arXiv:1909.13719); `trivial`: one of them at any
            strength (Mueller and Hutter 2021, arXiv:2103.10158).
        random_erasing: Share of the training images in which a rectangle is painted over in the mean colour
            (Zhong et al. 2017, arXiv:1708.04896), in [0, 1].
        mean: Mean of red, green and blue, which run from 0 to 1.
        std: Standard deviation of red, green and blue.
        validation_folders: Names of the validation part's folder under root; the first that is there is taken.
        test_folders: The same for the test part.
        test: Share of the training images for the test part, in (0, 1), where there is no folder for it.
        validation: Share of the rest for the validation part, in (0, 1), where there is no folder for it.
        split_seed: Seed of the split.
        bits: That images of 16 bits use; None: those that the file names, else 16.

    Raises:
        ConfigError: A folder is missing or empty, a part has a class that training does not have, a setting
            is outside its range, or torchvision is missing.
    """
    transforms = _transforms()
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ConfigError(f"data.image_size: {image_size!r} is no side in pixels; it must be an integer >= 1.")
    for setting, share in (("data.crop", crop), ("data.min_scale", min_scale)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"{setting}: {share!r} is no share; it must be in (0, 1].")
    for setting, colours in (("data.mean", mean), ("data.std", std)):
        if isinstance(colours, str) or not isinstance(colours, Sequence) or len(colours) != 3:
            raise ConfigError(f"{setting}: {colours!r} is not three numbers, one each for red, green and blue.")
    if min(std) <= 0:
        raise ConfigError(f"data.std: {list(std)} has a value that is not above 0.")
    check_flag("data.flip", flip)
    check_bits(bits)
    check_erasing(random_erasing)
    if augment not in AUGMENTS:
        raise ConfigError(f"data.augment: {augment!r} is unknown; pick one of {', '.join(AUGMENTS)}.")
    for setting, names in (("data.validation_folders", validation_folders), ("data.test_folders", test_folders)):
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ConfigError(f"{setting}: {names!r} is not a list; give names such as {setting}=[val].")
    if not root or not isinstance(root, str):
        raise ConfigError(f"data.root: {root!r} is no directory; name the one that holds the folder train.")
    classes, samples, notes = find(Path(root).expanduser(), validation_folders, test_folders)
    for name, share in (("test", test), ("validation", validation)):
        if name not in samples:
            check_fraction(f"data.{name}", share)
            labels = torch.tensor([label for _, label in samples["train"]])
            kept, out = split(len(labels), share, check_seed("data.split_seed", split_seed), labels)
            if len(out) == 0:
                raise ConfigError(
                    f"data.{name}: {len(labels)} images of {len(classes)} classes leave none to split off."
                )
            samples[name] = [samples["train"][i] for i in out.tolist()]
            samples["train"] = [samples["train"][i] for i in kept.tolist()]
    shown = samples["train"][:: -(-len(samples["train"]) // LOOK)]
    notes += look(_openable(path for path, _ in shown), bits)[1]

    # A whole batch is standardised at once, where the model is: per image it takes longer than reading a small one.
    standardise = StandardiseChannels([255 * m for m in mean], [255 * s for s in std])
    centre = _centre(image_size, crop)
    random: list[Any] = [transforms.RandomResizedCrop(image_size, scale=(min_scale, 1.0))] if min_scale < 1 else centre
    if flip:
        random = [*random, transforms.RandomHorizontalFlip()]
    if augment == "light":
        random = [*random, transforms.ColorJitter(0.2, 0.2, 0.2)]
    elif augment == "randaugment":
        random = [*random, transforms.RandAugment()]
    elif augment == "trivial":
        random = [*random, transforms.TrivialAugmentWide()]
    random = [*random, transforms.PILToTensor()]
    if random_erasing:
        random = [*random, transforms.RandomErasing(random_erasing, value=[255 * m for m in mean])]
    centre = [*centre, transforms.PILToTensor()]

    def part(samples: list[tuple[str, int]], steps: list[Any]) -> DatasetSplit:
        read = partial(read_image, bits=bits)
        dataset, plain = (FolderImages(samples, read, transforms.Compose(some)) for some in (steps, centre))
        return DatasetSplit(dataset, torch.tensor([label for _, label in samples]), standardise, plain=plain)

    return Data(
        name="image_folder",
        task="classification",
        input_shape=(3, image_size, image_size),
        num_outputs=len(classes),
        train=part(samples["train"], random),
        validation=part(samples["validation"], centre),
        test=part(samples["test"], centre),
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


def _openable(paths: Iterable[str]) -> Iterator[Any]:
    """Images that can be opened; of the others the run tells when their turn comes."""
    from PIL import Image

    for path in paths:
        with contextlib.suppress(Exception), Image.open(path) as image:
            yield image


def find(
    root: Path, validation_folders: Sequence[str], test_folders: Sequence[str]
) -> tuple[list[str], dict[str, list[tuple[str, int]]], list[str]]:
    """Find the images of the classes.

    Args:
        root: As for `load`.
        validation_folders: As for `load`.
        test_folders: As for `load`.

    Returns:
        The names of the classes; the (file, class) of each image of the parts that have a folder; lines for the log.

    Raises:
        ConfigError: A folder is missing or empty, or a part has a class that training does not have.
    """
    if not root.is_dir():
        raise ConfigError(f"data.root: there is no directory {root}.")
    folders, there, notes = Folders(root), Folders.within(root), []
    names = {"train": TRAIN, "test": test_folders, "validation": validation_folders}
    chosen = {part: place for part, of in names.items() if (place := Folders.called(there, of)) is not None}
    if "train" not in chosen:
        if chosen or not there:
            raise ConfigError(
                f"data.root: {root} has no folder train; put the images of each class into train/CLASS in it, or into "
                "CLASS in it and nothing else."
            )
        chosen["train"] = root
        notes.append(f"{root} has no folder train: its folders are the classes, and all parts are split off them")
    elif aside := [place.name for place in there if place not in chosen.values()]:
        notes.append(f"left aside under {root}: the folders {', '.join(aside)}")
    found = {part: folders.classes(part, place) for part, place in chosen.items()}
    classes, train = list(found["train"]), chosen["train"]
    nested = [inner.parent for place in there for inner in Folders.within(place) if inner.name.casefold() in TRAIN]
    hint = f" Is data.root={nested[0]} meant?" if nested else ""
    if len(classes) < 2:
        raise ConfigError(f"data.root: {train} has one class, {classes[0]!r}; at least two are needed.{hint}"
                          if classes else f"data.root: {train} has no folder of a class.{hint}")  # fmt: skip
    samples = {}
    for part, of_class in found.items():
        if new := [name for name in of_class if name not in classes]:
            raise ConfigError(
                f"data.root: {chosen[part]} has the class folder {new[0]!r}, which {train} does not have; "
                f"that has: {', '.join(classes)}."
            )
        samples[part] = [(path, classes.index(name)) for name, paths in of_class.items() for path in paths]
        if not samples[part]:
            raise ConfigError(
                f"data.root: {chosen[part]} has no images; fill it, or remove it to split them off train."
            )
    return classes, samples, [*notes, *folders.told(), *doubts(classes)]


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2 as transforms
    except ImportError as error:
        raise ConfigError(
            f"data=image_folder reads images with torchvision, which does not import ({error}): "
            "pip install 'hydra-accelerate-launcher[vision]'"
        ) from error
    return transforms


def _centre(image_size: int, crop: float) -> list[Any]:
    """Where nothing is random: the centre of an image."""
    transforms = _transforms()
    return [transforms.Resize(round(image_size / crop)), transforms.CenterCrop(image_size)]


def read_alike(
    path: str | Sequence[str],
    classes: list[str],
    image_size: int,
    crop: float,
    mean: list[float],
    std: list[float],
    bits: int | None = None,
) -> Others:
    """Find other images, to be prepared as the validation images of a run.

    Args:
        path: An image, a directory (searched at any depth), a text file (.txt) with the path of an image on each
            line, or a list of images. They count as labelled where each lies in a directory named as its class.
        classes: Names of the classes, in their order.
        image_size: Side of the square that the model gets, in pixels.
        crop: Side of the centre crop over the shorter side of the image.
        mean: Of red, green and blue, which run from 0 to 1.
        std: Of red, green and blue.
        bits: As the run's setting.

    Raises:
        ConfigError: There is no such file, or no image.
    """
    transforms = _transforms()
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
    dataset = FolderImages(
        samples,
        partial(read_image, bits=bits),
        transforms.Compose([*_centre(image_size, crop), transforms.PILToTensor()]),
    )
    standardise = StandardiseChannels([255 * m for m in mean], [255 * s for s in std])
    part = DatasetSplit(dataset, torch.tensor([label for _, label in samples]), standardise)
    return Others(part, [str(file) for file in files], labelled)


def read_image(path: str, bits: int | None = None) -> Any:
    """The image in a file, as RGB, whatever its own mode."""
    from PIL import Image

    with Image.open(path) as image:
        return converted(image, "RGB", bits)
