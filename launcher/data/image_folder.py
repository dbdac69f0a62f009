"""A user's own images: one folder per part, in it one folder per class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.data import Data, DatasetPart, Others, check_flag, check_fraction, check_seed, split
from launcher.data.images import StandardiseChannels, check_erasing, converted
from launcher.errors import BrokenFile, ConfigError

AUGMENTS = ("none", "light", "randaugment", "trivial")


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
) -> Data:
    """Find the images under root/train and the folders of the other two parts, one folder per class.

    A part without a folder of its own is split off the training images. Validation and test images are
    resized and cropped at the centre. Training images are cropped at random, mirrored and changed further by
    `augment` and `random_erasing`; the random numbers come from the global generator of torch.

    Args:
        root: Directory with the folder `train`.
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

    Raises:
        ConfigError: A folder is missing or empty, a part has a class that training does not have, a setting
            is outside its range, or torchvision is missing.
    """
    transforms = _transforms()
    from torchvision.datasets import ImageFolder

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
    check_erasing(random_erasing)
    if augment not in AUGMENTS:
        raise ConfigError(f"data.augment: {augment!r} is unknown; pick one of {', '.join(AUGMENTS)}.")
    for setting, names in (("data.validation_folders", validation_folders), ("data.test_folders", test_folders)):
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ConfigError(f"{setting}: {names!r} is not a list; give names such as {setting}=[val].")
    if not root or not isinstance(root, str):
        raise ConfigError(f"data.root: {root!r} is no directory; name the one that holds the folder train.")
    folder = Path(root).expanduser()
    if not (folder / "train").is_dir():
        raise ConfigError(
            f"data.root: {folder} has no folder train; put the images of each class into train/CLASS in it."
        )

    def scan(part: Path, classes: list[str] | None) -> tuple[list[str], list[tuple[str, int]]]:
        try:
            # Only in training must each class have images.
            found = ImageFolder(str(part), allow_empty=classes is not None)
        except FileNotFoundError as error:
            raise ConfigError(f"data.root: {part}: {error}") from error
        if classes is None:
            return found.classes, found.samples
        new = [name for name in found.classes if name not in classes]
        if new:
            raise ConfigError(
                f"data.root: {part} has the class folder {new[0]!r}, which {folder}/train does not have; "
                f"that has: {', '.join(classes)}."
            )
        if not found.samples:
            raise ConfigError(f"data.root: {part} has no images; fill it, or remove it to split them off train.")
        return classes, [(path, classes.index(found.classes[label])) for path, label in found.samples]

    classes, train = scan(folder / "train", None)
    if len(classes) < 2:
        raise ConfigError(f"data.root: {folder}/train has one class, {classes[0]!r}; at least two are needed.")

    def part_of(setting: str, share: float, names: Sequence[str]) -> list[tuple[str, int]]:
        """The images of the first of these folders, else a share taken out of the training images."""
        nonlocal train
        for name in names:
            if (folder / name).is_dir():
                return scan(folder / name, classes)[1]
        check_fraction(setting, share)
        labels = torch.tensor([label for _, label in train])
        kept, out = split(len(train), share, check_seed("data.split_seed", split_seed), labels)
        if len(out) == 0:
            raise ConfigError(f"{setting}: {len(train)} images of {len(classes)} classes leave none to split off.")
        taken = [train[i] for i in out.tolist()]
        train = [train[i] for i in kept.tolist()]
        return taken

    tested = part_of("data.test", test, test_folders)
    validated = part_of("data.validation", validation, validation_folders)

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

    def part(samples: list[tuple[str, int]], steps: list[Any]) -> DatasetPart:
        dataset, plain = (FolderImages(samples, read_image, transforms.Compose(some)) for some in (steps, centre))
        return DatasetPart(dataset, torch.tensor([label for _, label in samples]), standardise, plain=plain)

    return Data(
        name="image_folder",
        task="classification",
        input_shape=(3, image_size, image_size),
        num_outputs=len(classes),
        train=part(train, random),
        validation=part(validated, centre),
        test=part(tested, centre),
        class_names=classes,
        reader={
            "_target_": "launcher.data.image_folder.read_alike",
            "classes": classes,
            "image_size": image_size,
            "crop": crop,
            "mean": list(mean),
            "std": list(std),
        },
    )


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2 as transforms
    except ImportError as error:
        raise ConfigError(
            f"data=image_folder reads images with torchvision, which does not import ({error}): "
            "pip install 'launcher[vision]'"
        ) from error
    return transforms


def _centre(image_size: int, crop: float) -> list[Any]:
    """Where nothing is random: the centre of an image."""
    transforms = _transforms()
    return [transforms.Resize(round(image_size / crop)), transforms.CenterCrop(image_size)]


def read_alike(
    path: str | Sequence[str], classes: list[str], image_size: int, crop: float, mean: list[float], std: list[float]
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

    Raises:
        ConfigError: There is no such file, or no image.
    """
    transforms = _transforms()
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if isinstance(path, str):
        place = Path(path).expanduser()
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
        elif place.suffix == ".txt" and place.is_file():
            files = [Path(line.strip()) for line in place.read_text().splitlines() if line.strip()]
        else:
            files = [place]
    else:
        files = [Path(str(file)).expanduser() for file in path]
    if not files:
        raise ConfigError(f"input: {path} has no image ({', '.join(IMG_EXTENSIONS)}).")
    if absent := [file for file in files if not file.is_file()]:
        raise ConfigError(f"input: there is no file {absent[0]}; name an image, a directory or a list (.txt) of them.")
    labelled = all(file.parent.name in classes for file in files)
    samples = [(str(file), classes.index(file.parent.name) if labelled else 0) for file in files]
    dataset = FolderImages(
        samples, read_image, transforms.Compose([*_centre(image_size, crop), transforms.PILToTensor()])
    )
    standardise = StandardiseChannels([255 * m for m in mean], [255 * s for s in std])
    part = DatasetPart(dataset, torch.tensor([label for _, label in samples]), standardise)
    return Others(part, [str(file) for file in files], labelled)


def read_image(path: str) -> Any:
    """The image in a file, as RGB, whatever its own mode."""
    from PIL import Image

    with Image.open(path) as image:
        return converted(image, "RGB")
