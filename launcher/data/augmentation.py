"""Augmentation of images in memory, a batch at once, by uniform numbers that belong to the samples."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from launcher.core.errors import ConfigError
from launcher.data.arguments import check_flag


@dataclass
class FlipAndShift:
    """Mirror an image left to right in half of the cases, and shift it by whole pixels; zeros move in.

    Both are draws of the sample's own uniform numbers: vertical shift, horizontal shift, flip.
    """

    flip: bool  # mirror at all
    shift: int  # most pixels to shift by, in each of the four directions; every distance is equally likely

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
    """

    prob: float  # share of the images, in [0, 1]
    colour: list[float]  # raw value of each channel that is painted

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
    """One augmentation after the other, each with uniform numbers of its own, as many as its `draws`."""

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
    """The augmentation that the settings of these names ask for; None for none.

    Images have a side in pixels, which `shift` has to be below; an erased rectangle a raw value for each channel.
    """
    check_flag("data.flip", flip)
    if isinstance(shift, bool) or not isinstance(shift, int) or not 0 <= shift < side:
        raise ConfigError(f"data.shift: {shift!r} is no number of pixels in [0, {side - 1}]; 0 is for none.")
    steps: list[Any] = [FlipAndShift(flip, shift)] if flip or shift else []
    steps += [Erase(random_erasing, colour)] if random_erasing else []
    return Together(steps) if steps else None
