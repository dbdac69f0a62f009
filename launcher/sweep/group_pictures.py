"""Pictures of settings rather than of trials: curves with their range over seeds, all settings at once, the front."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.run import curves
from launcher.sweep.comparison import Comparison, Entry
from launcher.sweep.seed_groups import Group
from launcher.sweep.statistics import is_scale, numbers_first

COLOURS = ("#3987e5", "#d95926", "#2b9d74", "#a465c4", "#c79a13", "#4fb3c9")
AXES = 8  # of the parallel coordinates; the settings that explain most
LABELS = 6  # of the values on one of these axes


def draw_bands(axes: Any, sweep: Comparison) -> None:
    """The mean curve of the best groups with the range of their seeds, at the epochs that all of these have."""
    import numpy as np

    shown = [group for group in sweep.repeated if group.n > 1][: len(COLOURS)]
    everything: list[float] = []
    for place, group in reversed(list(enumerate(shown))):
        epochs, values = common_curve(sweep, group)
        marker = "o" if len(epochs) <= 30 else None
        label = f"{place + 1}. {short(brief(group.settings) or group.label, 34)} ({group.n})"
        axes.fill_between(epochs, values.min(0), values.max(0), color=COLOURS[place], alpha=0.18, linewidth=0)
        axes.plot(epochs, values.mean(0), color=COLOURS[place], linewidth=1.7, marker=marker, markersize=3, label=label)
        everything += values[np.isfinite(values)].tolist()
    scale(axes, everything)
    axes.set_title(f"{sweep.metric}: mean and range of the seeds", parse_math=False)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True)
    keys = ", ".join(key.rsplit(".", 1)[-1] for key in shown[0].settings)
    legend_below(axes, f"{keys} (seeds)".strip())


def common_curve(sweep: Comparison, group: Group) -> tuple[Any, Any]:
    """The epochs [t] that the curves of all its finished trials have, and their values [trials, t]."""
    import numpy as np

    found = [dict(zip(*entry.curve, strict=True)) for entry in members(sweep, group)]
    epochs = sorted(set.intersection(*(set(curve) for curve in found)))
    return np.array(epochs), np.array([[curve[epoch] for epoch in epochs] for curve in found])


def members(sweep: Comparison, group: Group) -> list[Entry]:
    """The finished trials of a group."""
    return [entry for entry in sweep.measured if entry.settings == group.settings]


def draw_parallel(axes: Any, sweep: Comparison) -> None:
    """Each group as a line over an axis for each setting, which ends at its mean; the best in colour and in front."""
    names = parallel_names(sweep)
    places = {name: positions([group.settings[name] for group in sweep.groups]) for name in names}
    groups = [group for group in sweep.groups if math.isfinite(group.estimate.mean)]
    means = [group.estimate.mean for group in groups]
    least, extent = min(means), max(means) - min(means) or 1.0
    for rank, group in reversed(list(enumerate(groups))):
        heights = [places[name][group.settings[name]] for name in names] + [(means[rank] - least) / extent]
        colour = COLOURS[rank] if rank < len(COLOURS) else axes.xaxis.label.get_color()
        alpha, width = (0.95, 1.8) if rank < len(COLOURS) else (max(0.03, min(0.2, 15 / len(groups))), 0.8)
        axes.plot(range(len(heights)), heights, color=colour, alpha=alpha, linewidth=width, solid_joinstyle="round")
    for x, name in enumerate(names):
        axes.axvline(x, color=axes.xaxis.label.get_color(), alpha=0.4, linewidth=0.8)
        different = sorted(places[name].items(), key=lambda item: item[1])
        shown = (
            [different[0], different[-1]]
            if is_scale(places[name])
            else different[:: math.ceil(len(different) / LABELS)]
        )
        for value, height in shown:
            text = f"{float(value):.3g}" if is_scale(places[name]) else short(value, 12)
            axes.text(x + 0.03, height + 0.01, text, fontsize=8, parse_math=False)  # above lines that meet
    last = len(names)
    axes.axvline(last, color=axes.xaxis.label.get_color(), alpha=0.4, linewidth=0.8)
    for share in (0.0, 0.5, 1.0):
        axes.text(last + 0.04, share, f"{least + share * extent:.3g}", fontsize=8, verticalalignment="center")
    axes.set_xticks(range(last + 1), [*(short(name.rsplit(".", 1)[-1], 14) for name in names), "mean"])
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_xlim(-0.15, last + 0.45)
    axes.set_ylim(-0.04, 1.08)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{sweep.metric}: the best {min(len(groups), len(COLOURS))} of {len(groups)} settings", parse_math=False
    )


def parallel_names(sweep: Comparison) -> list[str]:
    """The settings that parallel coordinates are drawn of: those that vary, in the order of the sweep, at most AXES."""
    if sum(math.isfinite(group.estimate.mean) for group in sweep.groups) < 2:
        return []
    names = [name for name in sweep.groups[0].settings if len({group.settings[name] for group in sweep.groups}) > 1]
    if len(names) > AXES and sweep.analysis is not None:
        shares = {
            effect.settings[0]: effect.share or 0.0 for effect in sweep.analysis.effects if effect.settings[1:] == ()
        }
        most = sorted(names, key=lambda name: -shares.get(name, 0.0))[:AXES]
        names = [name for name in names if name in most]
    return names[:AXES]


def positions(values: Sequence[str]) -> Mapping[str, float]:
    """A height between 0 and 1 for each value of a setting.

    Many numbers lie at their own distances, on a logarithmic scale where they are far apart; words, and few numbers, at
    equal distances in order.
    """
    different = sorted(set(values), key=numbers_first)
    if not is_scale(different):
        return {value: place / max(1, len(different) - 1) for place, value in enumerate(different)}
    numbers = [float(value) for value in different]
    if on_log_scale(numbers):
        numbers = [math.log(value) for value in numbers]
    return {v: (x - numbers[0]) / (numbers[-1] - numbers[0]) for v, x in zip(different, numbers, strict=True)}


def draw_front(axes: Any, sweep: Comparison) -> None:
    """Groups by the first two metrics that are compared, and the Pareto front of these as a line of steps."""
    first, second = list(sweep.modes)[:2]
    beside = [point for point in sweep.front if not point.on_front]
    front = sorted((point for point in sweep.front if point.on_front), key=lambda point: point.values[0])
    ground = axes.xaxis.label.get_color()
    axes.plot(
        [p.values[0] for p in beside], [p.values[1] for p in beside], "o", color=ground, alpha=0.3, label="others"
    )
    x, y = [point.values[0] for point in front], [point.values[1] for point in front]
    line = "-" if len(sweep.modes) == 2 else ""  # the front of three metrics is no line in a plane
    where = "post" if sweep.mode == "min" else "pre"
    axes.plot(x, y, line, drawstyle=f"steps-{where}", color=curves.EVALUATED, linewidth=1.2)
    axes.plot(x, y, "D", color=curves.EVALUATED, markersize=6, label="Pareto front")
    axes.set_xlabel(first, parse_math=False)
    axes.set_ylabel(second, parse_math=False)
    axes.set_title(f"{second} by {first}: means of the settings", parse_math=False)
    axes.grid(True)
    axes.legend(frameon=False, fontsize=8)


def legend_below(axes: Any, title: str) -> None:
    """A legend under the picture, from the best to the worst, where lines that were drawn last come first."""
    from matplotlib.transforms import ScaledTranslation

    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    # In inches, which leave room for the label of the axis however low the picture is.
    place = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    below = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": place, "borderaxespad": 0}
    columns = 2 if max(map(len, labels)) < 28 else 1
    look = {"frameon": False, "fontsize": 8, "alignment": "left"}
    legend = axes.legend(handles[::-1], labels[::-1], title=title, ncols=columns, **look, **below)
    for text in [*legend.get_texts(), legend.get_title()]:
        text.set(parse_math=False, fontsize=8)


def scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis for finite values that are positive and far apart."""
    if far_apart(values):
        axes.set_yscale("log")


def far_apart(values: Sequence[float]) -> bool:
    """Whether finite values are positive, and so different that only a logarithmic axis shows them all."""
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)


def on_log_scale(numbers: Sequence[float]) -> bool:
    """Whether the numbers that a search has tried of a setting lie more evenly on a logarithmic axis."""
    if not far_apart(numbers):
        return False
    least, middle, greatest = min(numbers), statistics.median(numbers), max(numbers)
    by_log = math.log(middle / least) / math.log(greatest / least)
    return abs(by_log - 0.5) < abs((middle - least) / (greatest - least) - 0.5)


def brief(settings: Mapping[str, str]) -> str:
    """The values of settings for a legend: numbers with many digits are rounded."""
    texts = []
    for value in settings.values():
        rounded = len(value) > 6 and not numbers_first(value)[0]
        texts.append(f"{float(value):.3g}" if rounded else value)
    return " ".join(texts)


def short(text: str, length: int) -> str:
    """A text cut to a length, with a sign that it is."""
    return text if len(text) <= length else text[: length - 1] + "…"
