"""Images in memory: scaling, flips, shifts and erasing of a batch, and a long tail of classes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.source import check_flag

ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258  # tags of Exif and TIFF
LOOK = 32  # images of a part that are looked at before it is trained on


def converted(image: Any, mode: str, bits: int | None = None) -> Any:
    """An image of Pillow's, upright, in another mode; where it is deep, its upper 8 bits, which Pillow would not take.

    Args:
        image: In any mode.
        mode: `L` or `RGB`.
        bits: That the values of an image of 16 bits use; None: those that its file names, else 16.

    Raises:
        BrokenFile: Its pixels are 32-bit integers or floats, of which nobody knows the range.
    """
    from PIL import Image, ImageOps

    depth = depth_of(image, bits)
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if depth is not None:
        image = Image.fromarray((np.asarray(image) >> (depth - 8)).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise BrokenFile(f"its pixels are {kind}; save it with 8 or 16 bits")
    if isinstance(image.info.get("transparency"), bytes):  # of a palette: Pillow warns of each where it goes at once
        image = image.convert("RGBA")
    return image.convert(mode)


def depth_of(image: Any, bits: int | None) -> int | None:
    """Bits that the values of an image of Pillow's use, where it has more than 8; else None."""
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

    Args:
        images: Of Pillow's.
        bits: The setting data.bits.

    Returns:
        Whether one has colours; and lines about what looks strange.

    Raises:
        ConfigError: They are deep, and dark as if they used fewer bits.
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


@dataclass
class Standardise:
    """Raw images [b, ...], uint8 or float32, to (images - mean) / std in float32.

    Args:
        mean: Mean of the raw values.
        std: Standard deviation of the raw values, above 0.
    """

    mean: float
    std: float

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a batch, elementwise."""
        # One copy, then in place: raw.sub(mean) makes up its type on the way, at four to ten times the time.
        return raw.to(torch.float32, copy=True).sub_(self.mean).mul_(1 / self.std)


@dataclass
class StandardiseChannels:
    """Raw images [b, channels, ...], uint8 or float32, to float32, each channel with a mean and deviation of its own.

    Args:
        mean: Mean of the raw values of each channel.
        std: Standard deviation of the raw values of each channel, above 0.
    """

    mean: list[float]
    std: list[float]

    def __call__(self, raw: Tensor) -> Tensor:
        """Standardise a batch, elementwise."""
        images = raw.to(torch.float32, copy=True)
        for channel, mean, std in zip(images.unbind(1), self.mean, self.std, strict=True):
            channel.sub_(mean).mul_(1 / std)
        return images


@dataclass
class FlipAndShift:
    """Mirror an image left to right in half of the cases, and shift it by whole pixels; zeros move in.

    Both are draws of the sample's own uniform numbers: vertical shift, horizontal shift, flip.

    Args:
        flip: Mirror at all.
        shift: Most pixels to shift by, in each of the four directions; every distance is equally likely.
    """

    flip: bool
    shift: int

    @property
    def draws(self) -> int:
        """Uniform numbers per sample."""
        return 2 * (self.shift > 0) + self.flip

    def __call__(self, raw: Tensor, uniforms: Tensor) -> Tensor:
        """Move images [b, channels, height, width] by uniforms [b, draws] in [0, 1)."""
        if self.flip:
            raw = torch.where(uniforms[:, -1].lt(0.5)[:, None, None, None], raw.flip(-1), raw)
        if self.shift:
            height, width = raw.shape[-2:]
            # Every window of the padded image is a view; indexing copies the chosen one of each sample, once.
            windows = pad(raw, (self.shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            at = uniforms[:, :2].mul(2 * self.shift + 1).long()
            raw = windows[torch.arange(len(raw), device=raw.device), :, at[:, 0], at[:, 1]]
        return raw


@dataclass
class Erase:
    """Paint over a rectangle of some images, at random (Zhong et al. 2017, arXiv:1708.04896).

    Its area is 2 to 33 % of the image and its height 0.3 to 3.3 times its width, on a logarithmic scale, as in the
    paper; a side that would be longer than the image's is as long.

    Args:
        prob: Share of the images, in [0, 1].
        colour: Raw value of each channel that is painted.
    """

    prob: float
    colour: list[float]

    draws = 5  # whether, area, ratio, row, column

    def __call__(self, raw: Tensor, uniforms: Tensor) -> Tensor:
        """Paint images [b, channels, height, width] by uniforms [b, 5] in [0, 1)."""
        height, width = raw.shape[-2:]
        chosen, area, ratio, row, column = uniforms.unbind(1)
        area = (0.02 + 0.31 * area) * (height * width)
        ratio = (math.log(0.3) * (1 - 2 * ratio)).exp()
        inside = chosen.lt(self.prob)[:, None]
        box = []
        for side, length, at in ((height, area * ratio, row), (width, area / ratio, column)):
            length = length.sqrt().round().clamp(1, side)
            first = (at * (side - length + 1)).floor()[:, None]
            pixels = torch.arange(side, device=raw.device)
            box.append((pixels >= first) & (pixels < first + length[:, None]))
        mask = (inside & box[0])[:, None, :, None] & box[1][:, None, None, :]
        # Not torch.tensor: it is made on the host, and the copy waits for the device. A number is a kernel's argument.
        colour = torch.stack([torch.full((), one, device=raw.device) for one in self.colour]).to(raw.dtype)
        return torch.where(mask, colour[:, None, None], raw)


@dataclass
class Together:
    """One augmentation after the other, each with uniform numbers of its own.

    Args:
        steps: What is done, first to last; each has `draws`.
    """

    steps: list[Any]

    @property
    def draws(self) -> int:
        """Uniform numbers per sample."""
        return sum(step.draws for step in self.steps)

    def __call__(self, raw: Tensor, uniforms: Tensor) -> Tensor:
        """Change images [b, channels, height, width] by uniforms [b, draws] in [0, 1)."""
        for step, own in zip(self.steps, uniforms.split([step.draws for step in self.steps], 1), strict=True):
            raw = step(raw, own)
        return raw


def augmentation(flip: Any, shift: Any, random_erasing: Any, side: int, colour: list[float]) -> Together | None:
    """The augmentation that `data.flip`, `data.shift` and `data.random_erasing` ask for; None for none.

    Args:
        flip: Mirror at all.
        shift: Most pixels to shift by, in [0, side).
        random_erasing: Share of the images in which a rectangle is painted over, in [0, 1].
        side: Of the images, in pixels.
        colour: Raw value of each channel that is painted.

    Raises:
        ConfigError: One is outside its range.
    """
    moved = flip_and_shift(flip, shift, side)
    check_erasing(random_erasing)
    steps = [step for step in (moved, Erase(random_erasing, colour) if random_erasing else None) if step is not None]
    return Together(steps) if steps else None


def check_erasing(prob: Any) -> float:
    """A probability of erasing in [0, 1], else a ConfigError."""
    if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
        raise ConfigError(f"data.random_erasing: {prob!r} is no share of images; it must be in [0, 1], 0 for none.")
    return float(prob)


def flip_and_shift(flip: Any, shift: Any, side: int) -> FlipAndShift | None:
    """The augmentation that the settings `data.flip` and `data.shift` ask for; None for none.

    Raises:
        ConfigError: flip is no boolean, or shift no integer in [0, side).
    """
    check_flag("data.flip", flip)
    if isinstance(shift, bool) or not isinstance(shift, int) or not 0 <= shift < side:
        raise ConfigError(f"data.shift: {shift!r} is no number of pixels in [0, {side - 1}]; 0 is for none.")
    return FlipAndShift(flip, shift) if flip or shift else None


def long_tail(labels: Tensor, imbalance: Any, seed: int) -> Tensor:
    """Samples that remain where the classes are to thin out exponentially, first to last.

    Class i of k keeps the share imbalance ** (-i / (k - 1)) of its samples, rounded down and at least one:
    the profile of Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of Samples", section 5.1.

    Args:
        labels: [n] int64 classes 0 .. k - 1.
        imbalance: Largest class over the smallest, at least 1, where the classes were of one size.
        seed: Seed of the choice within each class.

    Returns:
        Indices that stay, ascending.

    Raises:
        ConfigError: imbalance is below 1.
    """
    if isinstance(imbalance, bool) or not isinstance(imbalance, int | float) or not 1 <= imbalance < float("inf"):
        raise ConfigError(
            f"data.imbalance: {imbalance!r} is no ratio of the largest to the smallest class; "
            "it must be a number >= 1, such as 50, or null to keep every sample."
        )
    order = np.random.RandomState(seed).permutation(len(labels))
    classes = labels.numpy()[order]
    counts = np.bincount(classes)
    stay = []
    for i, count in enumerate(counts):
        share = imbalance ** (-i / max(len(counts) - 1, 1))
        stay.append(order[classes == i][: max(1, int(count * share))])
    return torch.from_numpy(np.sort(np.concatenate(stay)))
