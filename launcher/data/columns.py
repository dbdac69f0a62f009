"""Columns of a Hugging Face dataset as inputs: images or numbers of one shape, to tensors."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from launcher.core.errors import BrokenFile, ConfigError
from launcher.core.extras import import_extra
from launcher.data.images import StandardiseChannels
from launcher.data.pillow import LOOK, converted, has_colours, look
from launcher.data.table_statistics import standardise, statistics

AT_ONCE = 1 << 20  # numbers that are read at once to take their statistics


@dataclass
class Images:
    """Images of the library PIL to one uint8 tensor.

    Args:
        mode: PIL's name for what the model sees: `L` for grey, `RGB`.
        size: (width, height) in pixels.
        fit: Scale and crop at the centre what has another size; else that is an error.
        bits: That images of 16 bits use; None: those that the file names, else 16.
        sure: Whether the mode was asked for: then also colours become grey.
    """

    mode: str
    size: tuple[int, int]
    fit: bool
    bits: int | None = None
    sure: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as the model gets it."""
        return (len(self.mode), self.size[1], self.size[0])

    def __call__(self, images: Sequence[Any]) -> Tensor:
        """The images as [n, channels, height, width] uint8.

        Raises:
            BrokenFile: One is missing, has another size, or pixels that are no colours.
        """
        return torch.stack([self.pixels(image) for image in images])

    def pixels(self, image: Any) -> Tensor:
        """One image as [channels, height, width] uint8."""
        from PIL import ImageOps
        from PIL.Image import Resampling

        if image is None:
            raise BrokenFile("data.input: a row has no image")
        if self.mode == "L" and not self.sure and has_colours(image):
            raise BrokenFile("data.input: an image has colours, and those looked at first are grey; set data.channels")
        image = converted(image, self.mode, self.bits)
        if image.size != self.size:
            if not self.fit:
                raise BrokenFile(
                    f"data.input: an image has {image.size[0]} x {image.size[1]} pixels, and the first one "
                    f"{self.size[0]} x {self.size[1]}; set data.image_size to bring all to one size"
                )
            image = ImageOps.fit(image, self.size, Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).view(*self.size[::-1], -1).permute(2, 0, 1).contiguous()


@dataclass
class Numbers:
    """Numbers of one shape to one float32 tensor, standardised.

    Args:
        shape: Of one sample.
        mean: [*shape] float64, subtracted.
        std: [*shape] float64, then divided by.
    """

    shape: tuple[int, ...]
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    def __call__(self, rows: Any) -> Tensor:
        """The rows as [n, *shape] float32."""
        return torch.from_numpy(standardise(self.raw(rows), self.mean, self.std)).float()

    def raw(self, rows: Any) -> np.ndarray:
        """The rows as they are, [n, *shape] float64.

        Raises:
            BrokenFile: One has another shape, or a value is missing or not finite.
        """
        size = math.prod(self.shape)
        try:
            whole = isinstance(rows, np.ndarray) and rows.dtype != object
            samples = [rows.reshape(len(rows), -1)] if whole else [np.asarray(row, np.float64)[None] for row in rows]
        except (ValueError, TypeError) as error:
            raise BrokenFile(f"data.input: a row holds no numbers of one shape ({error})") from error
        for sample in samples:
            if sample[0].size != size:
                raise BrokenFile(f"data.input: a row has {sample[0].size} numbers, and the first one {size}")
        numbers = np.concatenate(samples).astype(np.float64, copy=False).reshape(-1, *self.shape)
        if not np.isfinite(numbers).all():
            raise BrokenFile("data.input: a row has a number that is missing or not finite")
        return numbers


class Rows(Dataset):
    """Rows of a dataset, a whole batch at once.

    Args:
        dataset: A map-style dataset of the library, with one column.
        targets: [n, ...], one for each row.
        decode: What the column holds, as one tensor [n, ...].
    """

    preload = ("datasets",)  # workers of an evaluation start in 0.25 s, without it in 3 s (measured)

    def __init__(self, dataset: Any, targets: Tensor, decode: Callable[[Any], Tensor]) -> None:
        self.dataset, self.targets, self.decode = dataset, targets, decode

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        (column,) = self.dataset[indices].values()
        return list(zip(self.decode(column), self.targets[indices], strict=True))


def decoding(
    dataset: Any, column: str, image_size: int | None, mean: Any, std: Any, channels: int | None, bits: int | None
) -> tuple[Images | Numbers, tuple[int, ...], StandardiseChannels | None, list[str]]:
    """How a column becomes a tensor, the shape of a sample, what is left to do with a batch, and lines for the log.

    By the first row; of images, by some at equal distances.

    Raises:
        ConfigError: It is no column of images or numbers, or mean or std do not fit.
    """
    feature = dataset.features[column]
    if type(feature).__name__ == "Image":
        import_extra("PIL.Image", "data.input: images are read with Pillow", "hf")
        first = dataset[0][column]
        if first is None:
            raise ConfigError(f"data.input: the first row has no image in {column!r}.")
        rows, images_alone = range(0, len(dataset), -(-len(dataset) // LOOK)), dataset.select_columns([column])
        shown = (images_alone[row][column] or first for row in rows)
        images, standardise_channels, notes = decoding_images(first, shown, image_size, (mean, std), channels, bits)
        return images, images.shape, standardise_channels, notes
    try:
        row = np.asarray(dataset.with_format("numpy")[0][column])
        if row.dtype.kind not in "fiubO":  # dates would become numbers without a word
            raise TypeError
        row = row.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"data.input: column {column!r} holds {feature}, neither images nor numbers; the columns are: "
            f"{', '.join(dataset.column_names)}."
        ) from error
    shape = row.shape or (1,)
    return Numbers(shape), shape, None, []


def decoding_images(
    first: Any,
    shown: Iterable[Any],
    image_size: int | None,
    scale: tuple[Any, Any],
    channels: int | None,
    bits: int | None,
) -> tuple[Images, StandardiseChannels, list[str]]:
    """How images of PIL become a tensor, what is left to do with a batch, and lines for the log.

    Args:
        first: The first image.
        shown: Some to look at.
        image_size: `data.image_size`.
        scale: `data.mean` and `data.std`.
        channels: `data.channels`.
        bits: `data.bits`.

    Raises:
        ConfigError: The mean or the deviation does not fit.
    """
    coloured, notes = look(shown, bits)
    mode = "L" if channels == 1 or (channels is None and not coloured) else "RGB"
    size = first.size if image_size is None else (image_size, image_size)
    mean, std = (
        [255 * value for value in per_channel(f"data.{name}", given, len(mode))]
        for name, given in zip(("mean", "std"), scale, strict=True)
    )
    if min(std) <= 0:
        raise ConfigError(f"data.std: {scale[1]!r} has a value that is not above 0.")
    return Images(mode, size, image_size is not None, bits, channels is not None), StandardiseChannels(mean, std), notes


def measure(sets: Mapping[str, Any], column: str, numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a column of numbers over the training split.

    Raises:
        ConfigError: A row of any split is none that the model could take.
    """

    def pieces(split: str) -> Iterator[np.ndarray]:
        dataset = sets[split].select_columns([column])
        at_once = max(1, AT_ONCE // math.prod(numbers.shape))
        for first in range(0, len(dataset), at_once):
            yield numbers.raw(dataset[first : first + at_once][column])

    try:
        found = statistics(pieces("train"))
        for _ in chain(pieces("validation"), pieces("test")):  # looked through alone
            pass
        return found
    except BrokenFile as error:
        raise ConfigError(error.in_short()) from error


def per_channel(setting: str, given: Any, channels: int) -> list[float]:
    """A number for each channel, from one for all or from a list.

    Raises:
        ConfigError: It is neither.
    """
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * channels
    if len(values) != channels or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ConfigError(f"{setting}: {given!r} is neither one number nor one for each of {channels} channels.")
    return values
