"""The trials of a sweep that differ by their seed alone, and how two such groups compare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from launcher.sweep import inference
from launcher.sweep.inference import LEAST_SEEDS, LEVEL, Estimate
from launcher.sweep.sampling_error import SamplingError
from launcher.sweep.statistics import numbers_first, ranking

MANY = 50  # groups; above, pairs with too few seeds in common are not listed: there are thousands of them


@dataclass(frozen=True)
class Group:
    """One combination of settings, and its metric by seed."""

    settings: Mapping[str, str]  # those that vary in the sweep, but for the seed
    values: Mapping[str, float]  # seed to metric, of finished trials; the mean where a seed ran several times

    @property
    def label(self) -> str:
        """What makes it different, for people."""
        return label_of(self.settings)

    @property
    def n(self) -> int:
        """The number of its seeds, at least 1."""
        return len(self.values)

    @property
    def diverged(self) -> int:
        """The seeds that ended with a NaN or an infinite value."""
        return sum(not math.isfinite(value) for value in self.values.values())

    @cached_property
    def estimate(self) -> Estimate:
        """Its mean and the 95 % interval of that."""
        return inference.interval(list(self.values.values()))

    @property
    def deviation(self) -> float | None:
        """The standard deviation between its seeds; None of one seed, and where one has diverged."""
        import numpy as np

        return float(np.std(list(self.values.values()), ddof=1)) if self.n > 1 and not self.diverged else None


@dataclass(frozen=True)
class Pair:
    """Two groups, the better mean first, compared by the seeds that both have."""

    a: Group
    b: Group
    n: int  # seeds in common
    difference: float | None  # a - b, the mean over these; None without any, and where one has diverged
    low: float | None  # 95 % interval of the difference, not corrected
    high: float | None
    p: float | None  # corrected by Holm's method over all pairs of the sweep; None: too few seeds
    p_alone: float | None  # the same without correction
    level: float = LEVEL  # below it a corrected p decides
    sampling_error: float | None = None  # of the difference by the choice of test samples; None: not known

    @property
    def decided(self) -> bool:
        """The two differ."""
        return self.p is not None and self.p < self.level

    @property
    def reason(self) -> str:
        """Why nothing is decided, or what decides."""
        if self.p is not None:
            return f"{self.n} seeds, p {p_text(self.p, True)}"
        if self.a.diverged or self.b.diverged:
            return "a seed has diverged"
        if not self.n:
            return "no seed in common"
        by_samples = "" if self.sampling_error is None else f", ± {1.96 * self.sampling_error:.2g} by the test samples"
        return f"{self.n} seed{'s' * (self.n > 1)}{by_samples}"

    @property
    def verdict(self) -> str:
        """The comparison in words, after the names of both."""
        return f"they differ ({self.reason})" if self.decided else f"no difference shown ({self.reason})"


def label_of(settings: Mapping[str, str]) -> str:
    """Settings in one line, for people."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "all seeds"


def interval_text(found: Estimate | Pair) -> str:
    """A 95 % interval for people; a dash for none."""
    return "–" if found.low is None or found.high is None else f"[{found.low:.4g}, {found.high:.4g}]"


def spread_text(group: Group) -> str:
    """The mean of a group with its interval, for people."""
    ends = "" if group.estimate.low is None else f" {interval_text(group.estimate)}"
    return f"{group.estimate.mean:.4g}{ends}"


def p_text(p: float | None, sign: bool = False) -> str:
    """A p-value for people, with `sign` after an equals sign; those too small to mean anything are not told apart."""
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{'= ' * sign}{p:.2g}"


def grouped(results: Sequence[tuple[Mapping[str, str], str, float]], mode: str) -> list[Group]:
    """Groups from the best mean to the worst; those with a seed that has diverged come last.

    Args:
        results: Of each finished trial the settings that vary but for the seed, its seed, and its metric.
        mode: Min or max.
    """
    found: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = {}
    for settings, seed, value in results:
        # The same seed again gives the same result, and is no second opinion.
        found.setdefault(tuple(settings.items()), {}).setdefault(seed, []).append(value)
    groups = [
        Group(
            dict(settings),
            {seed: math.fsum(seeds[seed]) / len(seeds[seed]) for seed in sorted(seeds, key=numbers_first)},
        )
        for settings, seeds in found.items()
    ]
    key = ranking(mode)
    return sorted(groups, key=lambda group: key(group.estimate.mean))


def pairs_of(
    groups: Sequence[Group], looks: int = 1, level: float = LEVEL, sampling: SamplingError | None = None
) -> list[Pair]:
    """All pairs of groups, those with the best ones first; see `MANY` for what is left out of many.

    Args:
        groups: The best first.
        looks: How often they may have been compared before this; see `inference.sequential`.
        level: Below it a corrected p decides.
        sampling: Tells the error by the choice of test samples; its trials have the keys of `trial_key`.
    """
    resolution = inference.resolution_of([value for group in groups for value in group.values.values()])
    found = []
    for a, b in combinations(groups, 2):
        common = [seed for seed in a.values if seed in b.values]
        if len(common) < LEAST_SEEDS and len(groups) > MANY:
            continue
        tested, error = None, None
        if common:
            own, other = [a.values[s] for s in common], [b.values[s] for s in common]
            if sampling is not None:
                keys = [[trial_key(group.settings, seed) for seed in common] for group in (a, b)]
                error = sampling.of(*keys)
            tested = inference.sequential(own, other, looks, resolution, error or 0.0)
        found.append((a, b, len(common), tested, error))
    corrected = inference.holm([tested.p if tested else None for *_, tested, _ in found])
    pairs = []
    for (a, b, n, tested, error), p in zip(found, corrected, strict=True):
        if tested is None or not math.isfinite(tested.mean):
            pairs.append(Pair(a, b, n, None, None, None, None, None, level))
        else:
            pairs.append(Pair(a, b, n, tested.mean, tested.low, tested.high, p, tested.p, level, error))
    return pairs


def trial_key(settings: Mapping[str, str], seed: str) -> tuple[Any, ...]:
    """What tells one trial of a comparison from the others."""
    return (tuple(settings.items()), seed)


def summary_of(pairs: Sequence[Pair], groups: Sequence[Group]) -> str:
    """One sentence: how many pairs differ; empty where there is nothing to compare."""
    if len(groups) < 2:
        return ""
    tested = [pair for pair in pairs if pair.p is not None]
    if not tested:
        most = max((pair.n for pair in pairs), default=max(group.n for group in groups))
        seeds = f"{most} seed{'s' * (most != 1)}"
        return f"no difference shown ({seeds}): two settings need {LEAST_SEEDS} seeds in common, such as seed=0,1,2"
    decided = sum(pair.decided for pair in tested)
    means = f"paired t-test over seeds, Holm's correction, p < {tested[0].level:g}"
    if len(tested) == 1:
        return f"{'the two settings that can be compared differ' if decided else 'no difference shown'} ({means})"
    if not decided:
        return f"no difference shown between any of {len(tested)} pairs of settings ({means})"
    return f"{decided} of {len(tested)} pairs of settings differ ({means})"
