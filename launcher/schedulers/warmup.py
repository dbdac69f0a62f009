"""Length of the warmup."""

import re
from typing import TYPE_CHECKING

from launcher.core.errors import ConfigError

if TYPE_CHECKING:  # config.py checks warmups with this module, and must not wait for torch
    pass

WARMUP = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(epoch|step)s?\s*")


def parse_warmup(text: int | float | str | None, total_steps: int, steps_per_epoch: int) -> int:
    """Optimizer updates that a warmup takes.

    Args:
        text: Updates (5), a share of the run in (0, 1) (0.05), "2epochs", "0.5epochs", "100steps", None (0).
        total_steps: Updates of the run.
        steps_per_epoch: Updates of an epoch.

    Returns:
        Updates, at least 0 and fewer than total_steps.

    Raises:
        ConfigError: It is none of these, or not shorter than the run.
    """
    right = "give updates (500), a share of the run (0.05), epochs (2epochs) or steps (100steps)"
    wrong = ConfigError(f"scheduler.warmup is {text!r}: {right}.")
    if text is None:
        return 0
    if isinstance(text, bool):
        raise wrong
    if isinstance(text, str):
        match = WARMUP.fullmatch(text)
        if match is None:
            raise wrong
        steps = float(match[1]) * (steps_per_epoch if match[2] == "epoch" else 1)
        if match[2] == "step" and steps != int(steps):
            raise wrong
    elif isinstance(text, int):
        steps = text
    elif isinstance(text, float) and 0 <= text < 1:
        steps = text * total_steps
    else:
        raise wrong
    warmup = round(steps)
    if warmup < 0:
        raise wrong
    if 0 < total_steps <= warmup:
        raise ConfigError(
            f"scheduler.warmup is {text!r}, {warmup} updates, and the whole run has {total_steps}: "
            "give a shorter warmup or a longer run."
        )
    return warmup
