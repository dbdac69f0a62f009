"""Ranges of whole numbers as a person writes them."""

import re
from typing import Any


def parse_range(value: Any) -> tuple[int, int]:
    """The least and the most of a setting: a whole number of at least 1, which is both, or a text such as "1-4".

    Raises:
        ValueError: It is neither, or the first number is the larger one.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", str(value))
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if least > most:
        raise ValueError(f"{value!r} is no whole number of at least 1, nor a range such as 1-4, the least first")
    return least, most
