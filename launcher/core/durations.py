"""Spans of time as a person writes them."""

import re
from typing import Any

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: Any) -> float | None:
    """Seconds in a setting: a number of seconds, or a text such as "45s", "90m", "1.5h", "2d"; None for null.

    Raises:
        ValueError: It is none of these, or 0.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd]?)\s*", str(value)) if not isinstance(value, bool) else None
    if not match or float(match[1]) == 0:
        raise ValueError(f'{value!r} is no number of seconds above 0, nor a text such as "90m", "12h" or "2d"')
    return float(match[1]) * UNITS[match[2]]
