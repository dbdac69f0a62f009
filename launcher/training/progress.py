"""How far a run has come, and what its evaluations decide."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.core.errors import ConfigError

# What evaluations decide: keyword arguments of Progress.note (`best`) and of Progress.watch (`patience`).
Rules = Mapping[str, Mapping[str, Any]]


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer updates done
    best_step: int | None = None  # of the best evaluation; None before the first
    best: dict[str, float] = field(default_factory=dict)  # the metrics of that evaluation
    seen: bool = True  # the step was evaluated and logged; not where the run was stopped before
    max_per_device: int | None = None  # most samples that a device sees at once, where the run found that out by itself
    lowest: float = math.inf  # what early stopping watches at its best so far, the sign turned where more is better
    waited: int = 0  # evaluations in a row that did not better it
    ended: str | None = None  # why the run is over at this step, before its last one; None while it goes on

    @property
    def recorded(self) -> int:
        """The last step whose row, where it has one, is in the record; the rows after it come again."""
        return self.step if self.seen else self.step - 1

    def note(self, row: Mapping[str, float], metric: str | None, mode: str) -> None:
        """Keep an evaluation's metrics where they are the best so far by `metric`; None keeps none."""
        if metric is None:
            return
        sign = 1 if mode == "max" else -1
        best = math.nan if self.best_step is None else self.best[metric]
        if math.isnan(best) or sign * row[metric] > sign * best:
            self.best_step = self.step
            self.best = {name: value for name, value in row.items() if name.startswith("eval/")}

    def watch(self, row: Mapping[str, float], metric: str | None, mode: str, patience: int, min_delta: float) -> None:
        """Early stopping (Prechelt 1998): end the run after `patience` evaluations in a row without improvement.

        An improvement is by more than `min_delta`, >= 0. None as the metric never ends the run.
        """
        if metric is None:
            return
        sign = -1 if mode == "max" else 1
        if sign * row[metric] < self.lowest - min_delta:
            self.lowest, self.waited = sign * row[metric], 0
        else:  # NaN is no improvement
            self.waited += 1
        if self.waited >= patience:
            best = f"no better than {sign * self.lowest:.6g}"
            self.ended = f"early stopping: {metric} was {best} in {self.waited} evaluations in a row"

    def judged(self, rows: Iterable[Mapping[str, Any]], rules: Rules) -> "Progress":
        """The same progress by other rules, given the record's rows of the evaluations so far.

        Raises:
            ConfigError: By these rules the run would have ended before.
        """
        fresh = replace(self, best_step=None, best={}, lowest=math.inf, waited=0, ended=None)
        for row in rows:
            fresh.step = row["step"]
            fresh.note(row, **rules["best"])
            fresh.watch(row, **rules["patience"])
            if fresh.ended is not None:
                break
        if fresh.ended is not None and fresh.step < self.step:
            raise ConfigError(
                f"early_stopping: with these settings the run would have ended at step {fresh.step}, and it has done "
                f"{self.step} updates already. Use a longer patience, or another directory."
            )
        return replace(fresh, step=self.step)


def rules_of(settings: Any) -> Rules:
    """What a run's evaluations are judged by."""
    best = {"metric": settings.checkpoint.best, "mode": settings.checkpoint.best_mode}
    return {"best": best, "patience": dict(settings.early_stopping)}
