"""What a setting may be: a predicate, and the words for it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.core.errors import ConfigError

UNSTATED: Any = object()


@dataclass(frozen=True)
class Rule:
    """What a setting may be: a predicate, and the words for it.

    Attributes:
        fits: Whether a value may be.
        words: What may be.
        absent: What a config means that was made before there was this setting, by an earlier launcher; UNSTATED where
            none was.
    """

    fits: Callable[[Any], bool]
    words: str
    absent: Any = UNSTATED

    def or_null(self) -> "Rule":
        """The same, and null as well."""
        return Rule(lambda value: value is None or self.fits(value), f"{self.words}, or null")

    def or_word(self, *words: str) -> "Rule":
        """The same, and some words as well."""
        return Rule(lambda value: value in words or self.fits(value), f"{self.words}, or {' or '.join(words)}")

    def neutral(self, value: Any) -> "Rule":
        """The same, absent in the configs of earlier launchers, which did what this value does."""
        return replace(self, absent=value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def whole(least: int) -> Rule:
    """A whole number of at least `least`."""
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**63,
        f"a whole number of at least {least}",
    )


def above(bound: float) -> Rule:
    """A finite number greater than `bound`."""
    return Rule(lambda v: _is_number(v) and bound < v < float("inf"), f"a number greater than {bound:g}")


def at_least(bound: float) -> Rule:
    """A finite number of at least `bound`."""
    return Rule(lambda v: _is_number(v) and bound <= v < float("inf"), f"a number of at least {bound:g}")


def between(low: float, high: float) -> Rule:
    """A number from `low` (inclusive) to `high` (exclusive)."""
    return Rule(lambda v: _is_number(v) and low <= v < high, f"a number from {low:g} to below {high:g}")


def share() -> Rule:
    """A number from 0 to 1, both inclusive."""
    return Rule(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")


def one_of(*words: str) -> Rule:
    """One of some words."""
    return Rule(lambda v: v in words and not isinstance(v, bool), "one of " + ", ".join(words))


def list_of(rule: Rule, what: str) -> Rule:
    """A list whose items all fit a rule."""
    return Rule(lambda v: isinstance(v, list) and all(rule.fits(item) for item in v), f"a list of {what}")


@dataclass(frozen=True)
class Section(Rule):
    """Settings with a name in common.

    Attributes:
        main: The one that is meant where somebody gives a value to all; none where there is no such one.
    """

    main: str = ""


def section(main: str, off: str) -> Section:
    """The rule of a section, and a sentence on how it is switched off or what stands in its place."""
    return Section(lambda v: isinstance(v, Mapping), off, main=main)


def text_without(characters: str, longest: int) -> Rule:
    """A text that W&B takes as a name."""
    words = f"a text of at most {longest} characters, without any of {' '.join(characters)}"
    return Rule(lambda v: isinstance(v, str) and 0 < len(v) <= longest and not set(v) & set(characters), words)


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a text")
ANYTHING = Rule(lambda v: True, "anything")  # that what is built of it checks


def parse_duration(value: Any) -> float | None:
    """Seconds in `max_time`: a number of seconds, or a text such as "45s", "90m", "1.5h", "2d".

    Raises:
        ConfigError: It is neither.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd]?)\s*", str(value)) if not isinstance(value, bool) else None
    if not match or float(match[1]) == 0:
        raise ConfigError(f'max_time={value}: use a number of seconds above 0, or a text such as "90m", "12h" or "2d".')
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
