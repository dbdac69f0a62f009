"""Checks of the settings of data sources; each error names the setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError


def check_fraction(setting: str, fraction: Any) -> float:
    """A share of samples in (0, 1), else a ConfigError that names the setting."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(f"{setting}: {fraction!r} is no share of samples; it must be in (0, 1), such as 0.1.")
    return float(fraction)


def check_seed(setting: str, seed: Any) -> int:
    """A seed that NumPy takes, an integer in [0, 2**32), else a ConfigError that names the setting."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"{setting}: {seed!r} is no seed; it must be an integer in [0, 2**32), such as 0.")
    return seed


def check_flag(setting: str, flag: Any) -> bool:
    """True or false, else a ConfigError that names the setting."""
    if not isinstance(flag, bool):
        raise ConfigError(f"{setting}: {flag!r} is neither true nor false.")
    return flag


def check_whole(setting: str, number: Any, what: str) -> int:
    """An integer of at least 1, else a ConfigError that names the setting and says what it is."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"{setting}: {number!r} is no {what}.")
    return number


def check_folder(root: Any, holding: str) -> Path:
    """The directory that `data.root` names, else a ConfigError that says what it should hold."""
    if not root or not isinstance(root, str):
        raise ConfigError(f"data.root: {root!r} is no directory; name the one {holding}.")
    return Path(root).expanduser()


def check_names(setting: str, names: Any, example: str) -> list[str]:
    """A list of names, else a ConfigError that names the setting and shows an example."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"{setting}: {names!r} is not a list{example}")
    return [str(name) for name in names]


def check_unused(settings: Mapping[str, Any], why: str) -> None:
    """Refuse settings of `data` that something else than null would do nothing for, else a ConfigError.

    Args:
        settings: Name to value.
        why: What the data is, such as "x holds no images".
    """
    for name, value in settings.items():
        if value is not None:
            raise ConfigError(f"data.{name}={value}: {why}. Set it to null.")
