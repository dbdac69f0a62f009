"""Whether a trial of a search is worth going on with: from its record and those of the sweep's other trials."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.run.record import Record

PRUNED = "pruned"  # why such a run stopped, in stopped.json
SWEEP = "grid.json"  # in the directory of a sweep: what its trials are
BEGINNERS = 5  # trials that the median has to know of before it ends one, as Optuna's has it


@dataclass(frozen=True)
class Pruning:
    """A rule that ends trials early, and where the trials are that it compares.

    `asha` is asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys
    2020): at the first, first * factor, first * factor ** 2, ... evaluation of a trial, its rungs, those go on that are
    among the best `1 / factor` of all that have come so far. Others wait there, saved, until more trials have come and
    they are among them. `hyperband` deals the trials to `brackets`, each of which begins at a later rung (Li et al.,
    Hyperband, JMLR 2018). `median` ends for good what is worse, at its best, than the median of the others at the same
    evaluation.
    """

    sweep: str  # directory of the sweep
    trial: str  # the name of this trial in it
    method: str  # asha, hyperband or median
    first: int  # evaluations before the first decision
    factor: int  # see above; of no use to median
    brackets: int  # of hyperband; else 1
    metric: str
    mode: str  # min or max

    def decides_at(self, evaluations: int, number: int) -> bool:
        """Whether the trial that is the sweep's `number`th is judged after so many evaluations."""
        if self.method == "median":
            return evaluations >= self.first
        rung = self.first * self.factor ** (number % self.brackets)
        while rung < evaluations:
            rung *= self.factor
        return rung == evaluations

    def keeps(self, evaluations: int) -> bool:
        """Whether the trial is to go on after so many evaluations of its own, as far as can be told now.

        Raises:
            ConfigError: They do not measure the metric; such a trial could not be judged, and would wait for ever.
        """
        names = read_json(Path(self.sweep) / SWEEP).get("points") or {}
        curves = {name: self.curve(name) for name in names}
        if not curves[self.trial]:
            raise ConfigError(
                f"hydra.sweeper.pruner={self.method}: compares trials by {self.metric}, which their evaluations do not "
                "measure. Name one that stands in metrics.jsonl by hydra.sweeper.metrics, or add it to metrics."
            )
        return self.judge(self.trial, curves, evaluations)

    def judge(self, trial: str, curves: Mapping[str, Sequence[float]], evaluations: int) -> bool:
        """Whether a trial is good enough to go on after so many evaluations.

        Args:
            trial: Its name.
            curves: Of all trials, by name and in the order of the sweep; see `curve`.
            evaluations: How many of its own count; those of the others at the same time of their lives do.
        """
        place = list(curves).index(trial)
        if not self.decides_at(evaluations, place):
            return True
        own, alike = curves[trial], place % self.brackets
        others = [curve for at, curve in enumerate(curves.values()) if at != place and at % self.brackets == alike]
        there = [curve[evaluations - 1] for curve in others if len(curve) >= evaluations]
        if self.method == "median":
            return len(there) < BEGINNERS or min(own[:evaluations]) <= statistics.median(there)
        better = sum(value < own[evaluations - 1] for value in there)
        return better < (len(there) + 1) // self.factor

    def curve(self, trial: str) -> list[float]:
        """The metric of a trial, evaluation by evaluation, the less the better; NaN counts as the worst."""
        sign = 1.0 if self.mode == "min" else -1.0
        return [math.inf if math.isnan(v) else sign * v for v in curve(Path(self.sweep) / trial, self.metric)]


def curve(run: Path, metric: str) -> list[float]:
    """A metric of a run, evaluation by evaluation."""
    return [float(row[metric]) for row in Record(run / "metrics.jsonl").rows() if metric in row]
