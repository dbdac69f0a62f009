"""A column of masks, images whose pixels are classes, as the targets of a segmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching.splits import DatasetSplit
from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.arguments import check_whole
from launcher.data.columns import Images, Rows

MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # of Pillow: one number a pixel; of P the number in the palette
IGNORED = 255  # the pixel of no class, as PASCAL VOC, Cityscapes and ADE20K have it
NONE = -100  # what torch's losses leave out, and every metric here
MOST = 1 << 15


def holds_masks(sets: Mapping[str, Any], columns: Sequence[str], task: str) -> bool:
    """Whether target columns are one column of images, which is a segmentation.

    Raises:
        ConfigError: The task is a segmentation, and the columns are something else.
    """
    feature = sets["train"].features[columns[0]]
    found = len(columns) == 1 and type(feature).__name__ == "Image"
    if task == "segmentation" and not found:
        held = f"column {columns[0]!r} holds {feature}" if len(columns) == 1 else f"{', '.join(columns)} are several"
        raise ConfigError(
            f"data.target: {held}, and data.task=segmentation takes one column of images whose pixels are classes."
        )
    return found and task in ("auto", "segmentation")


def classes_of(mask: Any) -> np.ndarray:
    """The classes of a mask of Pillow's, [height, width] int16, -100 where it is 255.

    Raises:
        BrokenFile: It is missing, or its pixels are colours or no classes.
    """
    if mask is None:
        raise BrokenFile("data.target: a row has no mask")
    if mask.mode not in MODES:
        raise BrokenFile(
            f"data.target: a mask has the mode {mask.mode}; its pixels must be the numbers of classes, as grey (L) or "
            "in a palette (P)"
        )
    found = np.asarray(mask)
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < MOST:
        raise BrokenFile(f"data.target: a mask has pixels {found.min()}..{found.max()}; classes are 0..{MOST - 1}")
    found = found.astype(np.int16)
    return np.where(found == IGNORED, np.int16(NONE), found)


def count_classes(sets: Mapping[str, Any], column: str, classes: int | None) -> tuple[int, list[str]]:
    """The number of classes, as given or by reading every mask, and lines for the log.

    Raises:
        ConfigError: There is one class alone, a mask is none, or a split has a class that training does not have.
    """
    if classes is not None:
        check_whole("data.classes", classes, "number of classes; it must be an integer >= 2, or null")
        return classes, []
    found = {}
    try:
        for split, dataset in sets.items():
            alone = dataset.select_columns([column])
            found[split] = max((int(classes_of(row[column]).max(initial=NONE)) for row in alone), default=NONE)
    except BrokenFile as error:
        raise ConfigError(error.in_short()) from error
    except OSError as error:  # of Pillow's: no image
        raise ConfigError(f"data.target: {column!r} of {split} has a mask that cannot be read: {error}.") from error
    highest = found["train"]
    if highest < 1:
        raise ConfigError(
            f"data.target: the masks in {column!r} have no class above 0 but {IGNORED}, which marks pixels of no "
            "class. At least two classes are needed; where 255 is one, save the masks with 1 in its place."
        )
    for split, one in found.items():
        if one > highest:
            raise ConfigError(f"data.target: masks of {split} have the class {one}, and those of train 0..{highest}.")
    return highest + 1, [f"target {column!r} holds masks: a segmentation of {highest + 1} classes"]


class MaskedRows(Rows):
    """Images and their masks, a whole batch at once.

    Args:
        dataset: A map-style dataset of the library, with a column of images and one of masks.
        columns: The names of these two.
        decode: What makes tensors of the images; a mask is scaled and cropped like its image, without mixing classes.
        classes: Number of classes.
    """

    decode: Images

    def __init__(self, dataset: Any, columns: tuple[str, str], decode: Images, classes: int) -> None:
        super().__init__(dataset.select_columns(list(columns)), torch.empty(0), decode)
        self.columns, self.classes = columns, classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """[channels, height, width] uint8 and [height, width] int16 of each row.

        Raises:
            BrokenFile: An image or a mask cannot be taken.
        """
        rows = self.dataset[indices]
        images, masks = (rows[column] for column in self.columns)
        return [(self.decode.pixels(one), self._mask(mask, one)) for one, mask in zip(images, masks, strict=True)]

    def _mask(self, mask: Any, image: Any) -> Tensor:
        from PIL import ImageOps
        from PIL.Image import Resampling

        if mask is not None and mask.size != (upright := ImageOps.exif_transpose(image).size):
            raise BrokenFile(
                f"data.target: a mask has {mask.size[0]} x {mask.size[1]} pixels, and its image {upright[0]} x "
                f"{upright[1]}"
            )
        if mask is not None and mask.mode in MODES and mask.size != self.decode.size:
            mask = ImageOps.fit(mask, self.decode.size, Resampling.NEAREST)
        found = classes_of(mask)
        if (highest := int(found.max(initial=NONE))) >= self.classes:
            raise BrokenFile(f"data.target: a mask has the class {highest}, and there are 0..{self.classes - 1}")
        return torch.from_numpy(found)


def with_masks(split: DatasetSplit, dataset: Any, columns: tuple[str, str], classes: int) -> DatasetSplit:
    """A split of images with masks for targets, from one with any others.

    Args:
        split: Of rows of images.
        dataset: The same rows, with all columns.
        columns: Names of that of the images and that of the masks.
        classes: Number of classes.

    Raises:
        ConfigError: The split holds no images.
    """
    decode = getattr(split.dataset, "decode", None)
    if not isinstance(decode, Images):
        raise ConfigError(f"data.input: {columns[0]!r} holds no images, which the masks in {columns[1]!r} belong to.")
    return replace(split, dataset=MaskedRows(dataset, columns, decode, classes), targets=None)
