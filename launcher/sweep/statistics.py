"""Statistics of a sweep's results: pure functions of settings and values.

A result is the settings that vary between the trials, with the value of each, and the metric of one trial.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

SEED = "seed"  # the setting whose values are repetitions of the same thing
VALUES = 12  # of a setting with numbers; more are put into BINS of equal counts, as a search tries each number once
BINS = 4

Result = tuple[Mapping[str, str], float]


@dataclass(frozen=True)
class Sample:
    """The metric of each of the trials that have something in common, and what that is."""

    label: str
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """NaN where a value is."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation; None of a single value, and where one is not finite."""
        finite = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if finite else None


def best(values: Iterable[float], mode: str) -> float:
    """The least or greatest of some values, as `mode` (min or max) says; NaN where none is finite."""
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    return min(finite) if mode == "min" else max(finite)


def ranking(mode: str) -> Callable[[float | None], tuple[bool, float]]:
    """A key to sort values by, from the best to the worst; those that are None or NaN come last."""
    sign = 1 if mode == "min" else -1
    return lambda value: (value is None or math.isnan(value), sign * (value or 0.0))


def by_setting(results: Sequence[Result], names: Iterable[str]) -> dict[str, list[Sample]]:
    """For each setting with several values, the trials that have each, whatever their other settings; see `BINS`."""
    found: dict[str, list[Sample]] = {}
    for name in names:
        groups: dict[int, list[Result]] = {}
        for place, result in zip(bins_of([settings[name] for settings, _ in results]), results, strict=True):
            groups.setdefault(place, []).append(result)
        if len(groups) > 1:
            found[name] = [
                Sample(
                    _label_of([settings[name] for settings, _ in groups[place]]), [value for _, value in groups[place]]
                )
                for place in sorted(groups)
            ]
    return found


def bins_of(values: Sequence[str]) -> list[int]:
    """A number for each value of a setting, in the order of the values: its own, or that of a bin of many numbers."""
    different = sorted(set(values), key=numbers_first)
    classes = {value: place for place, value in enumerate(different)}
    if is_scale(different):
        order = sorted(range(len(values)), key=lambda row: classes[values[row]])
        # Equal values share the bin of the last of them.
        classes = {values[row]: rank * BINS // len(values) for rank, row in enumerate(order)}
    return [classes[value] for value in values]


def is_scale(values: Iterable[str]) -> bool:
    """Whether the values of a setting are so many numbers that each for itself says nothing."""
    different = set(values)
    return len(different) > VALUES and not any(numbers_first(value)[0] for value in different)


def _label_of(values: Sequence[str]) -> str:
    ordered = sorted(set(values), key=numbers_first)
    return ordered[0] if len(ordered) == 1 else f"{float(ordered[0]):.3g} to {float(ordered[-1]):.3g}"


def numbers_first(value: str) -> tuple[bool, float, str]:
    """A key to sort the values of a setting by: numbers by their size, then words."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
