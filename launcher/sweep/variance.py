"""How much of the spread of a metric goes with each setting of a sweep, and with each two of them together.

An analysis of variance by least squares, which needs no balanced design: the share of a setting is what the sum of
squares explained gains when the setting joins the main effects of all others, that of two settings what their
combinations add to all main effects (type II of Langsrud, ANOVA for Unbalanced Data, Statistics and Computing 13, 2003,
without higher interactions). Of a full grid the shares and the rest add up to one, and each is that of the textbook;
where a search has tried some settings more often than others, they need not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from launcher.sweep.inference import LEVEL, holm
from launcher.sweep.statistics import SEED, Result, bins_of

if TYPE_CHECKING:
    import numpy as np

SETTINGS = 12  # whose interactions are looked at; above, there are too many to read


@dataclass(frozen=True)
class Effect:
    """What one setting explains, or two together beyond what each explains alone."""

    settings: tuple[str, ...]  # one or two
    share: float | None  # of the sum of squares about the mean, 0 to 1; None where others tell its values already
    freedom: int  # degrees of freedom
    p: float | None  # of the F test, corrected by Holm's method over all effects; None without repetitions

    @property
    def label(self) -> str:
        """For people."""
        return " × ".join(self.settings)

    @property
    def verdict(self) -> str:
        """What there is to say of it."""
        if self.share is None:
            return "cannot be told apart from other settings"
        if self.p is None:
            return "not tested: nothing is repeated"
        return "differs" if self.p < LEVEL else "no difference shown"


@dataclass(frozen=True)
class Analysis:
    """The effects, the greatest share first of the settings and then of the interactions, and what they leave."""

    effects: list[Effect]
    rest: float  # the share of the sum of squares that settings and interactions leave
    trials: int  # that have a finite value


def analysis_of(results: Sequence[Result], names: Sequence[str]) -> Analysis | None:
    """The shares of settings in the spread of a metric; None where no setting or no value varies.

    Args:
        results: Of finished trials; those that diverged are left out.
        names: Of the settings that vary. The seed is one, as trials of one seed share their batches; it has no
            interactions: they are what the others are measured against.
    """
    import numpy as np

    known = [(settings, value) for settings, value in results if math.isfinite(value)]
    factors = {name: _columns([settings[name] for settings, _ in known]) for name in names} if known else {}
    factors = {name: columns for name, columns in factors.items() if columns.shape[1]}
    y = np.array([value for _, value in known])
    total = float(np.sum((y - y.mean()) ** 2)) if known else 0.0
    if not factors or total <= len(y) * (1e-12 * float(np.abs(y).max())) ** 2:
        return None
    mains = np.hstack(list(factors.values()))
    settings = [name for name in factors if name != SEED]
    crossed = combinations(settings, 2) if len(settings) <= SETTINGS else ()
    products = {(a, b): _products(factors[a], factors[b]) for a, b in crossed}
    base, rank = _explained(mains, y)
    gains: list[tuple[tuple[str, ...], float, int]] = []
    for name in factors:
        others = [columns for other, columns in factors.items() if other != name]
        less, fewer = _explained(np.hstack(others), y) if others else (0.0, 0)
        gains.append(((name,), base - less, rank - fewer))
    for pair, columns in products.items():
        more, greater = _explained(np.hstack([mains, columns]), y)
        gains.append((pair, more - base, greater - rank))
    everything, full = _explained(np.hstack([mains, *products.values()]), y)
    left = max(0.0, total - everything)
    return Analysis(_tested(gains, total, left, len(y) - 1 - full), left / total, len(y))


def _tested(
    gains: Sequence[tuple[tuple[str, ...], float, int]], total: float, left: float, freedom: int
) -> list[Effect]:
    """Effects from the sums of squares that they explain, with degrees of freedom, and from what is left."""
    from scipy.special import fdtrc

    chances: list[float | None] = []
    for _, gain, own in gains:
        if own == 0 or freedom == 0:
            chances.append(None)
        elif left <= 1e-20 * total:
            chances.append(0.0 if gain > 1e-12 * total else 1.0)
        else:
            chances.append(float(fdtrc(own, freedom, max(0.0, gain) / own / (left / freedom))))
    effects = [
        Effect(settings, min(1.0, max(0.0, gain / total)) if own else None, own, p)
        for (settings, gain, own), p in zip(gains, holm(chances), strict=True)
        if own or len(settings) == 1
    ]
    return sorted(effects, key=lambda effect: (len(effect.settings), -(effect.share or 0.0)))


def _columns(values: Sequence[str]) -> "np.ndarray":
    """One column [n] of zeros and ones for each value but the first, or for each bin of many numbers."""
    import numpy as np

    codes = np.array(bins_of(values))
    return (codes[:, None] == np.unique(codes)[1:]).astype(float)


def _products(a: "np.ndarray", b: "np.ndarray") -> "np.ndarray":
    """Every column [n] of one setting times every column of the other."""
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _explained(columns: "np.ndarray", y: "np.ndarray") -> tuple[float, int]:
    """The sum of squares of y [n] that columns [n, k] explain beside a constant, and their rank beside it."""
    import numpy as np

    basis, sizes, _ = np.linalg.svd(columns - columns.mean(0), full_matrices=False)
    rank = int((sizes > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))).sum())
    return float(np.sum((basis[:, :rank].T @ (y - y.mean())) ** 2)), rank
