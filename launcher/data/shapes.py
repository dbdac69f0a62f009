"""Images of simple shapes, made by numbers, with the class of each pixel: something small to segment."""

import numpy as np
import torch

from launcher.batching.splits import TensorSplit
from launcher.core.errors import ConfigError
from launcher.data.arguments import check_seed, check_whole
from launcher.data.images import Standardise
from launcher.data.source import Data
from launcher.data.splitting import split_three

CLASSES = ["background", "square", "disc", "triangle"]
MOST = 3  # shapes in an image, later ones before earlier ones
NOISE = 40.0  # deviation of each pixel, of values 0..255; a shape is at least as much brighter than what is behind


def load(samples: int, size: int, test: float, validation: float, split_seed: int) -> Data:
    """Make grey images [n, 1, size, size] uint8 of one to three shapes in noise, and their classes [n, size, size].

    The settings are those of conf/data/shapes.yaml.
    """
    check_whole("data.samples", samples, "number of images; it must be an integer >= 1, such as 2000")
    check_whole("data.size", size, "side in pixels; it must be an integer >= 8, such as 32")
    if not 8 <= size <= 1024:
        raise ConfigError(f"data.size: {size} is no side in pixels in 8..1024.")
    random = np.random.RandomState(check_seed("data.split_seed", split_seed))
    images, masks = zip(*(draw(random, size) for _ in range(samples)), strict=True)
    inputs, targets = torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.stack(masks))
    kept, validated, tested = split_three(samples, test, validation, split_seed)
    prepare = Standardise(*(float(number) for number in torch.std_mean(inputs[kept].float())[::-1]))
    train, validation_split, test_split = (
        TensorSplit(inputs[rows], targets[rows], prepare) for rows in (kept, validated, tested)
    )
    return Data(
        name="shapes",
        task="segmentation",
        input_shape=(1, size, size),
        num_outputs=len(CLASSES),
        train=train,
        validation=validation_split,
        test=test_split,
        class_names=CLASSES,
    )


def draw(random: np.random.RandomState, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and the class of each of its pixels, both [size, size] uint8."""
    row, column = np.mgrid[:size, :size]
    image, mask = np.full((size, size), random.uniform(40, 90)), np.zeros((size, size), np.uint8)
    for _ in range(random.randint(1, MOST + 1)):
        kind, half = random.randint(1, len(CLASSES)), random.uniform(size / 10, size / 4)
        down, right = row - random.uniform(half, size - half), column - random.uniform(half, size - half)
        inside = {
            1: np.maximum(abs(down), abs(right)) <= half,
            2: down**2 + right**2 <= half**2,
            3: (down <= half) & (2 * abs(right) <= down + half),
        }[kind]
        image[inside] = random.uniform(130, 220)
        mask[inside] = kind
    image += NOISE * random.standard_normal(image.shape)
    return image.clip(0, 255).round().astype(np.uint8), mask
