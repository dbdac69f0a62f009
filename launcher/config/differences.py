"""Settings that differ from those of an earlier run, other than those marked `may_differ` in schema.py."""

from collections.abc import Mapping
from typing import Any

from launcher.config.checks import filled
from launcher.config.components import COMPONENTS, absent, default_of, locate
from launcher.config.tree import UNSTATED, leaves, show_value
from launcher.core.errors import ConfigError


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps a run directory from being resumed with another config.

    Args:
        old: The settings that the directory was made with.
        new: The settings it is started with now.

    Returns:
        Lines such as `optimizer.lr: 0.1 -> 0.2`; empty where every difference leaves the result as it is.
    """
    from launcher.config.schema import MAY_DIFFER_ON_RESUME

    before, after = leaves(filled(old)), leaves(filled(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if any(key == name or key.startswith(name + ".") for name in MAY_DIFFER_ON_RESUME):
            continue
        was, now = (side[key] if key in side else _unsaid(side, key) for side in (before, after))
        if was != now:
            lines.append(f"{key}: {show_value(was)} -> {show_value(now)}")
    return lines


def _unsaid(given: Mapping[str, Any], key: str) -> Any:
    """What a setting is that one side does not give: what the schema states, else the default of its class."""
    group, _, name = key.partition(".")
    of_class = f"{group}._target_" in given
    if (of_class or group not in COMPONENTS) and (stated := absent(key)) is not UNSTATED:
        return stated
    if group not in COMPONENTS or not of_class or "." in name:
        return UNSTATED
    try:
        return default_of(locate(str(given[f"{group}._target_"]), group), name)
    except ConfigError:
        return UNSTATED
