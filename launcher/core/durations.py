"""Spans of time as a person writes them, and as SLURM prints them."""

import re
from typing import Any

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
UNKNOWN = {"", "UNLIMITED", "INFINITE", "INVALID", "NOT_SET", "N/A", "PARTITION_LIMIT"}


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


def parse_slurm_duration(text: str) -> float | None:
    """Seconds in `[days-]hours:minutes:seconds`, `minutes:seconds` or `minutes`, as SLURM prints and takes times.

    Returns:
        None for UNLIMITED and for what is not known (INVALID, NOT_SET, empty).

    Raises:
        ValueError: Something else.
    """
    text = text.strip()
    if text.upper() in UNKNOWN:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no time of SLURM's, such as 90, 1:30:00 or 2-12:00:00")
    days, *fields = match.groups()
    first, second, third = (None if f is None else int(f) for f in fields)
    if days is not None or third is not None:
        hours, minutes, seconds = first or 0, second or 0, third or 0
    else:
        hours, minutes, seconds = 0, first or 0, second or 0
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
