"""What a few seeds can tell: the interval of a mean, the difference of two settings, and its correction.

Two settings are compared by their trials of the same seed, which see the same batches in the same order and the same
splits. The test is Student's for paired samples (Student, The Probable Error of a Mean, Biometrika 6, 1908). A
percentile bootstrap of three to ten differences is far too liberal (Hesterberg, What Teachers Should Know About the
Bootstrap, The American Statistician 69, 2015), and a permutation of their signs cannot reach 0.05 below six seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SEEDS = 3  # that two settings have in common, below which nothing is decided
LEVEL = 0.05  # below it a corrected p decides


@dataclass(frozen=True)
class Estimate:
    """A mean, and the ends of its 95 % interval: None where a single value, or one that is not finite, has none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of paired differences, and the p-value of its being zero; None below LEAST_SEEDS pairs."""

    p: float | None


def interval(values: Sequence[float], deviation: float | None = None, beside: float = 0.0) -> Estimate:
    """The mean of some values with its interval by Student's t.

    Args:
        values: [n] independent ones, n >= 1.
        deviation: Their standard deviation, where that is known better than from them.
        beside: Standard error of the mean by what all values have in common, such as the test samples.
    """
    import numpy as np
    from scipy.special import stdtrit

    n, mean = len(values), float(np.mean(values))
    if n < 2 or not np.isfinite(values).all():
        return Estimate(mean, None, None)
    deviation = float(np.std(values, ddof=1)) if deviation is None else deviation
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * math.hypot(deviation / math.sqrt(n), beside)
    return Estimate(mean, mean - half, mean + half)


def paired(first: Sequence[float], second: Sequence[float], resolution: float = 0.0, beside: float = 0.0) -> Difference:
    """The mean of `first - second` with its interval and its p-value by the paired t-test, not corrected.

    Args:
        first: [n] values, n >= 1.
        second: [n] values of the same seeds in the same order.
        resolution: The least step of the metric, such as one over the number of samples of an accuracy. Differences
            that are all the same have a standard deviation of zero, which would prove anything; theirs is taken to be
            that of two rounded values: sqrt(1/6) of this.
        beside: Standard error of the mean difference by what all seeds have in common; see sampling_error.py. The
            degrees of freedom stay those of the seeds, which is on the safe side.
    """
    import numpy as np
    from scipy.special import stdtr

    differences = np.subtract(first, second)
    n = len(differences)
    if not np.isfinite(differences).all():
        return Difference(math.nan, None, None, None)
    deviation = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    if deviation <= 1e-12 * float(np.abs([first, second]).max()):  # zero, but for the rounding of floats
        deviation = resolution / math.sqrt(6)
    found = interval(differences.tolist(), deviation, beside)
    error = math.hypot(deviation / math.sqrt(n), beside)
    if n < LEAST_SEEDS:
        return Difference(found.mean, found.low, found.high, None)
    if error == 0:
        p = 1.0 if found.mean == 0 else 0.0
    else:
        p = float(2 * stdtr(n - 1, -abs(found.mean) / error))
    return Difference(found.mean, found.low, found.high, p)


def sequential(
    first: Sequence[float], second: Sequence[float], looks: int, resolution: float = 0.0, beside: float = 0.0
) -> Difference:
    """As `paired`, where the results were looked at after every seed from the third on, and might have ended it.

    Each of `looks` looks may find a difference that is not there with its part of the level, level / looks; so the
    least of their p-values, times their number, is one that holds whenever the looking ends.

    Args:
        first: [n] values by seed.
        second: [n] values of the same seeds in the same order.
        looks: How many there may be at most.
        resolution: See `paired`.
        beside: See there.
    """
    found = paired(first, second, resolution, beside)
    if looks == 1 or found.p is None:
        return found
    seen = [paired(first[:n], second[:n], resolution, beside).p for n in range(LEAST_SEEDS, len(first) + 1)]
    least = min(p for p in seen if p is not None)
    return Difference(found.mean, found.low, found.high, min(1.0, looks * least))


def resolution_of(values: Sequence[float]) -> float:
    """The least distance between different values; zero where all are the same."""
    import numpy as np

    known = np.unique([value for value in values if math.isfinite(value)])
    steps = np.diff(known)
    scale = float(np.abs(known).max()) if len(known) else 0.0
    steps = steps[steps > 1e-12 * scale]
    return float(steps.min()) if len(steps) else 0.0


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Corrected p-values: the chance that any of the true hypotheses is rejected stays below the level.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.

    Args:
        values: p-values; None for what was not tested, which does not count.
    """
    tested = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    greatest = 0.0
    for rank, (value, place) in enumerate(tested):
        greatest = max(greatest, min(1.0, (len(tested) - rank) * value))
        corrected[place] = greatest
    return corrected
