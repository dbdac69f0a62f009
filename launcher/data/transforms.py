"""Steps of torchvision from an image of Pillow's to a tensor: its centre, or a random piece of it."""

from typing import Any

from launcher.core.extras import import_extra


def torchvision_transforms() -> Any:
    """The module, else a ConfigError that says how to install it."""
    return import_extra("torchvision.transforms.v2", "data=image_folder reads images with torchvision", "vision")


def centre_crop(image_size: int, crop: float) -> list[Any]:
    """Where nothing is random: the centre of an image, as a tensor."""
    transforms = torchvision_transforms()
    return [transforms.Resize(round(image_size / crop)), transforms.CenterCrop(image_size), transforms.PILToTensor()]


def random_crop(image_size: int, centre: list[Any], min_scale: float, flip: bool, augment: str) -> list[Any]:
    """A random piece of an image, changed at random, as a tensor."""
    transforms = torchvision_transforms()
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
