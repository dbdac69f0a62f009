"""The Pareto front of settings that are judged by several metrics: no other is as good in all and better in one."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One combination of settings, by all metrics."""

    settings: Mapping[str, str]  # those that vary in the sweep, but for the seed
    values: Sequence[float]  # of each metric the mean over its trials
    on_front: bool  # no other point is as good in all metrics and better in one


def points_of(results: Sequence[tuple[Mapping[str, str], Sequence[float | None]]], modes: Sequence[str]) -> list[Point]:
    """The points of a sweep, those on the front first, and among them by the first metric.

    Args:
        results: Of each finished trial the settings that vary but for the seed, and its metrics.
        modes: Min or max for each metric.
    """
    trials: dict[tuple[tuple[str, str], ...], list[list[float]]] = {}
    for settings, values in results:
        known = [math.nan if value is None else value for value in values]
        trials.setdefault(tuple(settings.items()), []).append(known)
    signs = [1 if mode == "min" else -1 for mode in modes]
    means = {key: [statistics.fmean(column) for column in zip(*rows, strict=True)] for key, rows in trials.items()}
    costs = {
        key: [sign * value for sign, value in zip(signs, values, strict=True)]
        for key, values in means.items()
        if all(map(math.isfinite, values))  # what has diverged cannot be placed
    }
    points = [
        Point(dict(key), means[key], not any(_beats(other, cost) for other in costs.values()))
        for key, cost in costs.items()
    ]
    return sorted(points, key=lambda point: (not point.on_front, signs[0] * point.values[0]))


def _beats(other: Sequence[float], cost: Sequence[float]) -> bool:
    """As good in all and better in one; costs are better where they are less."""
    return all(a <= b for a, b in zip(other, cost, strict=True)) and list(other) != list(cost)
