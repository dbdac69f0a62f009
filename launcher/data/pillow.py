"""Images of Pillow's: of any mode and depth to grey or colour, and what looks strange in them."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from launcher.core.errors import BrokenFile, ConfigError

ORIENTATION = 0x0112  # a tag of Exif
BITS_PER_SAMPLE = 258  # a tag of TIFF
LOOK = 32  # images of a split that are looked at before it is trained on


def converted(image: Any, mode: str, bits: int | None = None) -> Any:
    """An image of Pillow's, upright, in the mode `L` or `RGB`; of one of 16 bits the upper 8 that its values use.

    Raises:
        BrokenFile: Its pixels are 32-bit integers or floats, of which nobody knows the range.
    """
    from PIL import Image, ImageOps

    depth = depth_of(image, bits)
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if depth is not None:
        image = Image.fromarray((np.asarray(image) >> (depth - 8)).clip(0, 255).astype(np.uint8))
    check_depth(image)
    if isinstance(image.info.get("transparency"), bytes):  # of a palette: Pillow warns of each where it goes at once
        image = image.convert("RGBA")
    return image.convert(mode)


def check_depth(image: Any) -> None:
    """Raise BrokenFile for an image of 32-bit integers or floats, of which nobody knows the range."""
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise BrokenFile(f"its pixels are {kind}; save it with 8 or 16 bits")


def depth_of(image: Any, bits: int | None) -> int | None:
    """Bits that the values of a deep image use: those given, or that the file names, else 16. None where it is not."""
    if not image.mode.startswith("I;16"):
        return None
    named = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]  # of a TIFF
    return bits or named


def check_bits(bits: Any) -> None:
    """A number of bits or None, else a ConfigError."""
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 9 <= bits <= 16):
        raise ConfigError(f"data.bits: {bits!r} is no number of bits from 9 to 16, or null.")


def look(images: Iterable[Any], bits: int | None) -> tuple[bool, list[str]]:
    """Look at some images before any is trained on.

    Returns:
        Whether one has colours; and lines about what looks strange.

    Raises:
        ConfigError: They are deep, and dark as if they used fewer bits than `bits`.
    """
    coloured, highest, deep = False, 0, 0
    notes: list[str] = []
    for image in images:
        coloured = coloured or has_colours(image)
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO" and not notes:  # which is a photo and its maps
            notes.append(f"some images have several frames, such as {image.n_frames}: the first is taken")
        if bits is None and depth_of(image, None) == 16:
            deep, highest = deep + 1, max(highest, int(np.asarray(image).max()))
    if deep and 255 < highest < 2**12:
        raise ConfigError(
            f"data.bits: no value of {deep} images of 16 bits that were looked at is above {highest}: they seem to use "
            f"fewer, and would be nearly black. Set data.bits=12, or data.bits=16 where they are meant so."
        )
    return coloured, notes


def has_colours(image: Any) -> bool:
    """Whether an image of Pillow's is other than grey."""
    return image.mode not in ("1", "L", "LA", "I", "F") and not image.mode.startswith("I;16")
