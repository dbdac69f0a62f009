"""U-Net: an output for each pixel of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.models.widths import check_image, check_width, group_norm


class UNet(nn.Module):
    """Convolutions at ever halved sizes and back, each size with what was found there on the way down.

    Ronneberger, Fischer and Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation (2015),
    https://arxiv.org/abs/1505.04597, with padding, so that the output has the size of the image, and GroupNorm. An
    image of any size will do: an odd side is rounded up where it is halved.

    Args:
        input_shape: (channels, height, width) of an image.
        num_outputs: Classes of a pixel.
        channels: Of the sizes, from the image's own to the smallest.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        before, _, _ = check_image("unet", input_shape)
        if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
            raise ConfigError(f"model.channels: {channels!r} is no list of widths; give one, such as [16,32,64].")
        widths = [check_width(f"model.channels[{i}]", width) for i, width in enumerate(channels)]
        self.down = nn.ModuleList(
            _stage(first, second) for first, second in zip([before, *widths[:-1]], widths, strict=True)
        )
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.widen = nn.ModuleList(nn.Conv2d(deep, wide, 1, bias=False) for deep, wide in pairs)
        self.up = nn.ModuleList(_stage(2 * wide, wide) for _, wide in pairs)
        self.output = nn.Conv2d(widths[0], num_outputs, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [n, channels, height, width] to outputs [n, num_outputs, height, width]."""
        hidden, found = inputs, list[Tensor]()
        for stage in self.down:
            if found:
                hidden = F.max_pool2d(hidden, 2, ceil_mode=True)
            hidden = stage(hidden)
            found.append(hidden)
        for widen, stage, beside in zip(self.widen, self.up, found[-2::-1], strict=True):
            # Each value four times, not interpolated: that has no deterministic gradient on a GPU.
            larger = widen(hidden).repeat_interleave(2, 2).repeat_interleave(2, 3)
            hidden = stage(torch.cat([beside, larger[..., : beside.shape[2], : beside.shape[3]]], 1))
        return self.output(hidden)


def _stage(before: int, after: int) -> nn.Sequential:
    """Two convolutions, each normalised, from [n, before, h, w] to [n, after, h, w]."""
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), group_norm(after), nn.ReLU()]
    return nn.Sequential(*layers)
