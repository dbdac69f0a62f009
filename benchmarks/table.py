"""What the rounds say: medians, spreads, ratios with their intervals, and the goals they are held against.

A round runs every contender once, one after the other, so that a ratio compares two runs that the machine saw
within minutes of each other; the figure for a goal is the median of these ratios, never a ratio of medians.
"""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Suite -> round -> contender -> what one run measured; a contender that was skipped or failed is left out.
Rounds = Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]]


@dataclass(frozen=True)
class Goal:
    """`contender` over `against` (or minus, for accuracy), in one measure.

    Args:
        what: The claim, as a person would say it.
        suite: Runs that it is about.
        contender: Whose figure is judged.
        against: Whose figure it is divided by; None judges the figure itself.
        measure: Name of the figure in a run's measurement.
        relation: `at least`, `at most`, or `no less than` for the difference of two figures against noise.
        target: The number to reach.
    """

    what: str
    suite: str
    contender: str
    against: str | None
    measure: str
    relation: str
    target: float


@dataclass(frozen=True)
class Verdict:
    """A goal, the median over the rounds, its 95 % interval, and whether the median reaches the target."""

    goal: Goal
    value: float | None
    low: float | None
    high: float | None
    rounds: int
    met: bool | None


def column(rounds: Sequence[Mapping[str, Mapping[str, Any]]], contender: str, measure: str) -> list[float]:
    """One figure of a contender in every round that has it."""
    found = (round_.get(contender, {}).get(measure) for round_ in rounds)
    return [value for value in found if value is not None]


def paired(
    rounds: Sequence[Mapping[str, Mapping[str, Any]]], contender: str, against: str, measure: str
) -> list[tuple[float, float]]:
    """The figures of two contenders in every round that has both."""
    pairs = ((r.get(contender, {}).get(measure), r.get(against, {}).get(measure)) for r in rounds)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the median, by drawing rounds with replacement (Efron 1979)."""
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    tail = (1 - level) / 2
    return medians[round(tail * (draws - 1))], medians[round((1 - tail) * (draws - 1))]


def judge(goal: Goal, rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> Verdict:
    """Hold the rounds against a goal; every figure is None where no round has what it needs."""
    if goal.against is None:
        values = column(rounds, goal.contender, goal.measure)
    else:
        pairs = paired(rounds, goal.contender, goal.against, goal.measure)
        values = [a - b if goal.relation == "no less than" else a / b for a, b in pairs]
    if not values:
        return Verdict(goal, None, None, None, 0, None)
    median = statistics.median(values)
    low, high = bootstrap_interval(values)
    if goal.relation == "at least":
        met = median >= goal.target
    elif goal.relation == "at most":
        met = median <= goal.target
    else:  # worse only where the whole interval says so
        met = high >= goal.target
    return Verdict(goal, median, low, high, len(values), met)


def judge_all(goals: Sequence[Goal], rounds: Rounds) -> list[Verdict]:
    return [judge(goal, rounds[goal.suite]) for goal in goals if goal.suite in rounds]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under a head, as a Markdown table whose columns stand below each other."""
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def format_goals(verdicts: Sequence[Verdict]) -> str:
    """The goals as a Markdown table."""
    rows = []
    for v in verdicts:
        unit = " s" if v.goal.against is None else ""
        digits = 4 if v.goal.relation == "no less than" else 2
        value = interval = "-"
        if v.value is not None:
            value = f"{v.value:.{digits}f}{unit}"
            interval = f"{v.low:.{digits}f} to {v.high:.{digits}f}"
        met = {True: "yes", False: "NO", None: "not measured"}[v.met]
        rows.append([v.goal.what, f"{v.goal.relation} {v.goal.target:g}{unit}", value, interval, str(v.rounds), met])
    return markdown(["what", "goal", "median", "95 % interval", "rounds", "met"], rows)


MEASURES = {  # name in a measurement -> heading, decimals
    "steps_per_second": ("steps/s", 0),
    "samples_per_second": ("samples/s", 0),
    "mfu": ("FLOP utilisation", 2),
    "synchronisations": ("synchronisations per step", 1),
    "data_wait": ("share waiting for data", 2),
    "seconds_to_step_51": ("s to step 51", 1),
    "seconds": ("s", 2),
    "peak_memory_mb": ("peak MB", 0),
    "train_loss": ("train loss", 3),
    "test_accuracy": ("test accuracy", 4),
}


def format_suite(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Median and (lowest to highest) of every figure of every contender, as a Markdown table."""
    contenders = list(dict.fromkeys(name for round_ in rounds for name in round_))
    measures = [m for m in MEASURES if any(column(rounds, name, m) for name in contenders)]
    rows = []
    for name in contenders:
        cells = [name]
        for measure in measures:
            values = column(rounds, name, measure)
            if values:
                figures = (statistics.median(values), min(values), max(values))
                cells.append("{} ({} to {})".format(*(f"{v:.{MEASURES[measure][1]}f}" for v in figures)))
            else:
                cells.append("-")
        rows.append(cells)
    return markdown(["", *(MEASURES[m][0] for m in measures)], rows)


def draw(rounds: Rounds, titles: Mapping[str, str], machine: str, path: Path) -> None:
    """One panel a suite: a dot for each run, a bar at the median."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for suite, measured in rounds.items():
        names = list(dict.fromkeys(name for round_ in measured for name in round_))
        for measure in ("steps_per_second", "samples_per_second", "seconds"):
            if all(column(measured, name, measure) for name in names):
                panels.append((suite, measured, names, measure))
                break
    if not panels:
        return
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, sum(1.1 + 0.34 * len(p[2]) for p in panels)), squeeze=False,
        gridspec_kw={"height_ratios": [1.1 + 0.34 * len(p[2]) for p in panels]}, layout="constrained",
    )  # fmt: skip
    for axis, (suite, measured, names, measure) in zip(axes[:, 0], panels, strict=True):
        for place, name in enumerate(reversed(names)):
            values = column(measured, name, measure)
            if not values:
                continue
            color = "tab:orange" if name.startswith("launcher") else "tab:blue"
            median = statistics.median(values)
            axis.barh(place, median, color=color, alpha=0.35)
            axis.plot(values, [place] * len(values), "o", color=color, markersize=4)
            axis.annotate(f" {median:,.{2 if measure == 'seconds' else 0}f}", (max(values), place), va="center")
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.set_xlim(0, 1.12 * max(v for name in names for v in column(measured, name, measure)))
        axis.set_xlabel(MEASURES[measure][0])
        axis.set_title(titles[suite], loc="left", fontsize=10)
    figure.suptitle(machine, fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
