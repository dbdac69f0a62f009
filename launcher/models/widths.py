"""Checks of widths, shares and shapes that models share, and GroupNorm, with which a sample's output is its own."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from launcher.core.errors import ConfigError


def check_width(setting: str, width: Any) -> int:
    """Width of one layer: an integer of at least 1, else a ConfigError that names the setting."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ConfigError(f"{setting}: {width!r} is no width; it must be an integer >= 1, such as 128.")
    return width


def check_image(model: str, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape (channels, height, width) of image data, else a ConfigError that says which models fit."""
    if len(input_shape) != 3:
        raise ConfigError(
            f"model={model} takes images [channels, height, width], and the data gives inputs of shape "
            f"{list(input_shape)}; pick model=mlp or model=linear, or image data such as data=digits."
        )
    channels, height, width = input_shape
    return channels, height, width


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu and He 2018, table 3) in equal groups of 16 channels, or of as few more as divide their number.

    Smaller groups do not learn better, and on a CPU with bfloat16 and channels last they take ten times as long.
    """
    size = next((size for size in range(16, channels) if channels % size == 0), channels)
    return nn.GroupNorm(channels // size, channels)
