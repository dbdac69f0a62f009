"""Reference models, one a file: each maps a batch of inputs to `num_outputs` numbers per sample.

All of them normalise with GroupNorm, so that a sample's output depends on that sample alone and not on
how the global batch is cut over the devices.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from launcher.core.errors import ConfigError


def check_width(setting: str, width: Any) -> int:
    """Width of one layer: an integer of at least 1, else a ConfigError that names the setting."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ConfigError(f"{setting}: {width!r} is no width; it must be an integer >= 1, such as 128.")
    return width


def check_widths(setting: str, widths: Any) -> list[int]:
    """Widths of layers: a list of integers of at least 1, else a ConfigError that names the setting."""
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise ConfigError(f"{setting}: {widths!r} is not a list; give widths such as {setting}=[128,64].")
    return [check_width(f"{setting}[{i}]", width) for i, width in enumerate(widths)]


def check_dropout(setting: str, dropout: Any) -> float:
    """A probability in [0, 1), else a ConfigError that names the setting."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"{setting}: {dropout!r} is no share of units to drop; it must be in [0, 1), such as 0.1.")
    return float(dropout)


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
