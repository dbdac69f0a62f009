"""How far a difference between two settings goes beyond the test samples that it was measured on.

All trials of a sweep see the same test split. The difference of two of them on it is one draw from what other samples
would have shown, and more seeds do not tell more about that. The bootstrap does: samples are drawn again, with
replacement, and the difference is worked out anew (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 6 and 8), by the same draw for both settings, since the samples are the same (paired).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.run.record import TEST_SAMPLES

DRAWS = 2000  # of the whole test split: the standard error is then known to 1.6 %
# Of more samples, so many groups of them, made at random, are drawn in place of the samples: of a sum over hundreds the
# spread is the same, and 2,000 draws of a million would take a minute.
GROUPS = 10_000
METRICS = {"test/loss": ("loss", "weight"), "test/accuracy": ("correct", None)}  # metric to its parts in TEST_SAMPLES


class SamplingError:
    """The error of differences by the choice of the test samples, where the trials have kept what was found of each.

    Args:
        metric: Of METRICS; of any other nothing is known.
        paths: Run directories of trials, by whatever they are told apart by.
    """

    def __init__(self, metric: str, paths: Mapping[Any, Path]) -> None:
        self.metric, self.paths = metric, paths

    def of(self, first: Sequence[Any], second: Sequence[Any]) -> float | None:
        """The standard error of the mean difference between two settings.

        Args:
            first: Trials of one, by their keys in `paths`.
            second: Those of the other, in the order of their seeds too.

        Returns:
            None where one of them has no such file, or for another test split.
        """
        import numpy as np

        drawn = [self._drawn.get(key) for key in (*first, *second)]
        if any(each is None for each in drawn):
            return None
        values = np.array(drawn)
        return float((values[: len(first)].mean(0) - values[len(first) :].mean(0)).std(ddof=1))

    @cached_property
    def _drawn(self) -> dict[Any, Any]:
        """The metric of each trial in each draw, [DRAWS], of those trials that have as many samples as the first."""
        import numpy as np

        parts = {key: found for key, path in self.paths.items() if (found := self._read(path)) is not None}
        if not parts:
            return {}
        count = len(next(iter(parts.values()))[0])
        generator = np.random.default_rng(0)
        groups = min(count, GROUPS)
        place = np.arange(count) % groups
        generator.shuffle(place)
        together = {
            key: [np.bincount(place, weights=part, minlength=groups) for part in found]
            for key, found in parts.items()
            if len(found[0]) == count
        }
        drawn: dict[Any, list[Any]] = {key: [] for key in together}
        for _ in range(DRAWS // 100):
            times = generator.multinomial(groups, np.full(groups, 1 / groups), size=100).astype(np.float64)
            for key, (values, weights) in together.items():
                drawn[key].append((times @ values) / (times @ weights))
        return {key: np.concatenate(rows) for key, rows in drawn.items()}

    def _read(self, path: Path) -> tuple[Any, Any] | None:
        """Values and weights of each sample, whose sums make the metric; None where they are not there."""
        import numpy as np

        if self.metric not in METRICS:
            return None
        name, weight = METRICS[self.metric]
        try:
            with np.load(path / TEST_SAMPLES) as kept:
                values = kept[name].astype(np.float64)
                weights = np.ones(len(values)) if weight is None else kept[weight].astype(np.float64)
        except (OSError, ValueError, KeyError):  # of an earlier launcher, or a split that was too large
            return None
        return values, weights
