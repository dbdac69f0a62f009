"""The comparison of a sweep as one JSON object, for programs: the names in it are an interface."""

import math
from collections.abc import Sequence
from typing import Any

from launcher.sweep.comparison import Comparison, Entry
from launcher.sweep.seed_groups import Group, Pair

METHOD = (
    "Groups: finished trials that differ by their seed alone; mean with 95 % interval by Student's t. "
    "Pairs: paired t-test over the seeds that both have, p corrected by Holm's method over all pairs; "
    "decided: p < 0.05. By test/loss and test/accuracy the error of a difference is that of the seeds and, beside it, "
    "that of the test samples, by a paired bootstrap."
)


def answer_of(sweep: Comparison) -> dict[str, Any]:
    """What `launcher compare --json` prints: numbers that are not finite or not known are None."""
    analysis = sweep.analysis
    effects = [] if analysis is None else analysis.effects
    return {
        "sweeps": [str(path) for path in sweep.sweeps],
        "metric": sweep.metric,
        "mode": sweep.mode,
        "metrics": sweep.modes,
        "verdict": sweep.verdict,
        "trials": [_trial(sweep, entry) for entry in sweep.entries],
        "groups": [_group(group) for group in sweep.groups],
        "pairs": [_pair(pair) for pair in sweep.pairs],
        "effects": [
            {"settings": effect.settings, "share": effect.share, "degrees_of_freedom": effect.freedom,
             "p": finite(effect.p), "verdict": effect.verdict}
            for effect in effects
        ],
        "unexplained": None if analysis is None else analysis.rest,
        "pareto": [
            {"settings": dict(point.settings), "values": dict(zip(sweep.modes, point.values, strict=True)),
             "on_front": point.on_front}
            for point in sweep.front
        ],
        "method": METHOD,
    }  # fmt: skip


def finite(value: Any) -> Any:
    """None in place of a number that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _trial(sweep: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "overrides": [o for o in entry.overrides if not o.startswith("hydra.run.dir=")],
        "settings": dict(entry.varied),
        "seed": entry.seed or None,
        "state": str(entry.state),
        "metric": finite(entry.value),
        "metrics": {name: finite(entry.values.get(name)) for name in sweep.modes},
        "seconds": finite(entry.summary.get("training_seconds")),
        "step": entry.summary.get("step"),
        "epoch": finite(entry.summary.get("epoch", _last(entry.curve[0]))),
        "reason": entry.reason or entry.summary.get("reason"),
    }


def _group(group: Group) -> dict[str, Any]:
    estimate = group.estimate
    return {
        "settings": dict(group.settings),
        "n": group.n,
        "mean": finite(estimate.mean),
        "low": estimate.low,
        "high": estimate.high,
        "deviation": group.deviation,
        "diverged": group.diverged,
        "values": {seed: finite(value) for seed, value in group.values.items()},
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "a": dict(pair.a.settings),
        "b": dict(pair.b.settings),
        "n": pair.n,
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
        "sampling_error": pair.sampling_error,
        "p": pair.p,
        "p_uncorrected": pair.p_alone,
        "decided": pair.decided,
        "verdict": pair.verdict,
    }


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None
