"""The pictures of a comparison: the curves of the trials and of the settings, and the effect of each setting."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from launcher.core.files import replacing
from launcher.run import curves
from launcher.sweep.comparison import Comparison
from launcher.sweep.group_pictures import (
    COLOURS,
    brief,
    common_curve,
    draw_bands,
    draw_front,
    draw_parallel,
    legend_below,
    on_log_scale,
    parallel_names,
    scale,
    short,
)
from launcher.sweep.statistics import SEED, Sample, best, is_scale, numbers_first

TICKS = 30  # that an axis has room for
NAMED = 6  # curves with a colour and a name of their own; the rest are the grey ground they stand out from

Panel = Callable[[Any], None]  # draws into matplotlib's axes


def draw(sweep: Comparison) -> None:
    """Draw grid.png, all pictures in one, where there is something to draw yet."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = panels_of(sweep)
    if not panels:
        return
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context(curves.style("#24292f")):
        figure = Figure(figsize=(6.2 * columns, 3.8 * rows), layout="constrained", facecolor="white")
        for place, panel in enumerate(panels, start=1):
            panel(figure.add_subplot(rows, columns, place))
        with replacing(sweep.path / "grid.png", "wb") as file:
            figure.savefig(file, dpi=130)


def svg_pictures(sweep: Comparison) -> list[str]:
    """Each picture as an SVG element, in the colour of the text around it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures = []
    for number, panel in enumerate(panels_of(sweep)):
        with rc_context(curves.style(curves.INK)):
            figure = Figure(figsize=(5.4, 3.4), layout="constrained")
            panel(figure.add_subplot())
            pictures.append(curves.as_svg(figure, f"grid {number}"))
    return pictures


def panels_of(sweep: Comparison) -> list[Panel]:
    """What there is to draw."""
    panels: list[Panel] = []
    if any(len(entry.curve[0]) > 1 for entry in sweep.entries):
        panels.append(partial(_draw_curves, sweep=sweep))
    if any(group.n > 1 and len(common_curve(sweep, group)[0]) > 1 for group in sweep.repeated):
        panels.append(partial(draw_bands, sweep=sweep))
    if len(parallel_names(sweep)) > 1:
        panels.append(partial(draw_parallel, sweep=sweep))
    if len(sweep.front) > 1:
        panels.append(partial(draw_front, sweep=sweep))
    for name, samples in sweep.effects.items():
        if is_scale(settings[name] for settings, _ in sweep.results):
            panels.append(partial(_draw_scale, sweep=sweep, name=name))
            continue
        panels.append(partial(_draw_effect, sweep=sweep, name=name, samples=samples))
    return panels


def _draw_curves(axes: Any, sweep: Comparison) -> None:
    import numpy as np

    named = [entry for entry in sweep.measured if entry.curve[0]][:NAMED]
    grey = [entry for entry in sweep.entries if entry.curve[0] and entry not in named]
    ground = axes.xaxis.label.get_color()
    alpha = max(0.03, min(0.18, 15 / (len(grey) + 1)))
    for entry in grey:
        axes.plot(*curves.envelope(*map(np.asarray, entry.curve)), color=ground, alpha=alpha, linewidth=0.8)
    for place, entry in reversed(list(enumerate(named))):
        marker = "o" if len(entry.curve[0]) <= 30 else None
        x, y = curves.envelope(*map(np.asarray, entry.curve))
        label = f"{place + 1}. {short(brief(entry.varied) or entry.name, 34)}"
        axes.plot(x, y, color=COLOURS[place], linewidth=1.7, marker=marker, markersize=3, label=label)
    scale(axes, [value for entry in sweep.entries for value in entry.curve[1] if math.isfinite(value)])
    axes.set_title(f"{sweep.metric}: the best {len(named)} of {len(named) + len(grey)}", parse_math=False)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True)
    legend_below(axes, ", ".join(key.rsplit(".", 1)[-1] for key in sweep.varied))


def _draw_scale(axes: Any, sweep: Comparison, name: str) -> None:
    """The trials over the numbers that a search has tried of one setting."""
    finite = [(float(settings[name]), value) for settings, value in sweep.results if math.isfinite(value)]
    alpha = max(0.15, min(0.7, 40 / (len(finite) + 40)))
    x, y = [number for number, _ in finite], [value for _, value in finite]
    axes.plot(x, y, "o", color=curves.TRAIN, alpha=alpha, markersize=4, markeredgewidth=0)
    if on_log_scale(x):
        axes.set_xscale("log")
    scale(axes, y)
    axes.set_title(f"{sweep.metric} by {name}", parse_math=False)
    axes.grid(True)


def _draw_effect(axes: Any, sweep: Comparison, name: str, samples: Sequence[Sample]) -> None:
    finite = {place: [v for v in sample.values if math.isfinite(v)] for place, sample in enumerate(samples)}
    for place, values in finite.items():
        alpha = max(0.15, min(0.7, 8 / (len(values) + 8)))
        axes.plot([place] * len(values), values, "o", color=curves.TRAIN, alpha=alpha, markersize=5, markeredgewidth=0)
    shown = {place: values for place, values in finite.items() if values}
    if shown:
        numbers = name != SEED and all(not numbers_first(sample.label)[0] for sample in samples)
        line = "-" if numbers else ""  # a line between words or seeds would mean nothing
        means, bests = map(statistics.fmean, shown.values()), [best(values, sweep.mode) for values in shown.values()]
        colour = curves.EVALUATED
        axes.plot(list(shown), list(means), line + "D", color=colour, linewidth=1.4, markersize=6, label="mean")
        dotted = line.replace("-", ":") + "_"
        axes.plot(list(shown), bests, dotted, color=colour, linewidth=1.0, markersize=12, label="best")
    scale(axes, [value for values in finite.values() for value in values])
    names = [short(sample.label, 18) for sample in samples]
    crowded = sum(map(len, names[:TICKS])) > 48
    every = math.ceil(len(names) / TICKS)
    axes.set_xticks(
        range(0, len(names), every), names[::every], rotation=35 if crowded else 0, ha="right" if crowded else "center"
    )
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_title(f"{sweep.metric} by {name}", parse_math=False)
    axes.grid(True, axis="y")
    axes.legend(frameon=False, fontsize=8)
