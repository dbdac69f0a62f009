"""The points of a grid compared: grid.csv, a table, grid.png and grid.html, from the files of its run directories.

    launcher compare outputs/grids/NAME --metric eval/accuracy

A grid that is not complete, or still running, is shown as far as it has come.
"""

import csv
import io
import math
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import OmegaConf

from launcher.config.checks import filled
from launcher.config.direction import direction
from launcher.config.places import check_length
from launcher.config.tree import key_of, leaves
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, replacing, write_text
from launcher.run import report
from launcher.run.tracking import Record
from launcher.sweep.board import figure_of
from launcher.sweep.failure import FAILED, OUTPUT
from launcher.sweep.submissions import SUBMISSIONS, in_queue
from launcher.sweep.trials import state_of

SEED = "seed"  # the setting whose values are repetitions of the same thing
ROWS = 25  # of the table on a terminal
NAMED = 6  # curves with a colour and a name of their own; the rest are the grey ground they stand out from
COLOURS = ("#3987e5", "#d95926", "#2b9d74", "#a465c4", "#c79a13", "#4fb3c9")


@dataclass
class Entry:
    """One point as its files tell.

    Attributes:
        name: Its directory within the grid's.
        state: finished, stopped, failed, interrupted (or running now) or new; of a job array also queued and running.
        overrides: That made it.
        config: Its settings by dotted name.
        summary: summary.json.
        value: The metric that counts; None where it is not known.
        varied: Value of each setting that differs between the points.
        curve: Epochs and values of the metric.
        reason: Why it failed.
    """

    name: str
    path: Path
    state: str
    overrides: list[str]
    config: dict[str, Any]
    summary: dict[str, Any]
    value: float | None = None
    varied: dict[str, str] = field(default_factory=dict)
    curve: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    reason: str = ""

    @property
    def label(self) -> str:
        """What makes it different, for people."""
        return ", ".join(f"{key}={value}" for key, value in self.varied.items()) or self.name

    @property
    def seedless(self) -> tuple[tuple[str, str], ...]:
        """What makes it different, the seed aside."""
        return tuple((key, value) for key, value in self.varied.items() if key != SEED)


@dataclass
class Comparison:
    """A grid, its points from the best to the worst; those without the metric come last.

    Attributes:
        metric: Name of the metric that counts.
        mode: min or max.
        started: The words that started it, such as `launcher train`.
        options: Of the command line, that say where the config is.
    """

    path: Path
    metric: str
    mode: str
    entries: list[Entry]
    started: list[str]
    options: list[str]

    @property
    def varied(self) -> list[str]:
        """The settings that differ."""
        return list(self.entries[0].varied)

    @property
    def measured(self) -> list[Entry]:
        """Finished points that have the metric."""
        return [entry for entry in self.entries if entry.state == "finished" and entry.value is not None]

    def better(self, values: Iterable[float]) -> float:
        """The best of some values; NaN where none is finite."""
        finite = [value for value in values if math.isfinite(value)] or [math.nan]
        return min(finite) if self.mode == "min" else max(finite)

    def repeat(self, entry: Entry) -> str:
        """The command that runs a point alone, in a new run directory."""
        own = [o for o in entry.overrides if not o.startswith("hydra.run.dir=")]
        world = entry.summary.get("world_size", 1)
        words = self.started
        if world > 1:
            words = ["-m", *words] if words[0] == "launcher" else words[1:]
            words = ["torchrun", "--nproc_per_node", str(world), *words]
        return shlex.join([*words, *self.options, *own])


def read_grid(path: Path, metric: str | None, mode: str | None) -> Comparison:
    """Read the run directories of a grid.

    Args:
        path: Of the grid.
        metric: The one that counts; None: the checkpoint.best of its points.
        mode: min or max; None: checkpoint.best_mode, for another metric as its name tells.

    Raises:
        ConfigError: It is no grid, or no point has the metric.
    """
    known = read_json(path / "grid.json")
    planned: dict[str, list[str]] = dict(known.get("points") or {})
    found = {str(file.parent.parent.relative_to(path)) for file in path.glob("**/.hydra/config.yaml")}
    found = {name for name in found if not name.startswith(f"{SUBMISSIONS}/")}  # copies of code
    active = in_queue(path)
    if not planned and not found:
        raise ConfigError(f"{path}: there is no grid in it. Name the directory that hydra.sweep.dir named.")
    entries = []
    for name in [*planned, *sorted(found - planned.keys())]:
        place = path / name
        overrides, config = planned.get(name, []), {}
        if (place / ".hydra/config.yaml").is_file():
            config = leaves(filled(_yaml(place / ".hydra/config.yaml")))
            overrides = list(_yaml(place / ".hydra/overrides.yaml") or overrides)
        state = state_of(place)
        state = active.get(name, state) if state != "finished" else state
        entry = Entry(name, place, state, overrides, config, read_json(place / "summary.json"))
        entry.reason = str(read_json(place / FAILED).get("reason", "")) if entry.state == "failed" else ""
        entries.append(entry)
    first = next((entry.config for entry in entries if entry.config), {})
    usual = first.get("checkpoint.best")
    if metric is None and usual is None:
        usual = next((n for e in entries for n in e.summary.get("final") or {} if n.startswith("eval/")), "eval/loss")
    chosen = metric or str(usual)
    if mode is None:
        mode = (
            first.get("checkpoint.best_mode", "min")
            if chosen == first.get("checkpoint.best")
            else direction(chosen) or "max"
        )
    for entry in entries:
        entry.value = figure_of(entry.path, chosen) if entry.state == "finished" else None
        rows = [row for row in Record(entry.path / "metrics.jsonl").rows() if chosen in row]
        entry.curve = [float(row["epoch"]) for row in rows], [float(row[chosen]) for row in rows]
    if metric is not None and all(entry.value is None and not entry.curve[0] for entry in entries):
        names = sorted({name for entry in entries for name in entry.summary.get("final") or {}})
        if names:
            raise ConfigError(f"metric={metric}: no point has it. There are: {', '.join(names)}.")
    _find_varied(entries)
    sign = 1 if mode == "min" else -1
    entries.sort(key=lambda e: (e.value is None or math.isnan(e.value), sign * (e.value or 0.0), e.name))
    started, options = known.get("started") or ["python", "launcher/train.py"], known.get("options") or []
    return Comparison(path, chosen, mode, entries, started, options)


def conclude(path: Path, metric: str | None, mode: str | None) -> None:
    """Compare a grid that has just run; a metric that none of its points turned out to have costs it no more than that.

    Args:
        path: Of the grid.
        metric: As for `read_grid`.
        mode: As for `read_grid`.
    """
    try:
        compare(path, metric, mode)
    except ConfigError as error:
        if metric is None:
            raise
        print(f"{error} Compared by checkpoint.best in its place.", flush=True)
        compare(path, None, None)


def compare(path: Path, metric: str | None, mode: str | None) -> Comparison:
    """Write grid.csv, grid.png and grid.html, and print the table.

    Args:
        path: Of the grid.
        metric: As for `read_grid`.
        mode: As for `read_grid`.

    Returns:
        What was compared.

    Raises:
        ConfigError: As for `read_grid`.
    """
    check_length(path, "")
    path = path.resolve()
    grid = read_grid(path, metric, mode)
    unwritten = None
    try:
        write_csv(grid)
        draw(grid)
        write_page(grid)
    except OSError as error:  # somebody else's grid, or a full disk
        unwritten = error
    print_table(grid)
    if unwritten is not None:
        print(f"grid.csv, grid.png and grid.html cannot be written into {path}: {unwritten.strerror}")
    return grid


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except OSError:
        return {}


def _find_varied(entries: Sequence[Entry]) -> None:
    """Note in each entry the overrides that not all have in common; where one is missing, the config's own value."""
    chosen = [
        {key_of(o): o.partition("=")[2] for o in entry.overrides if not o.startswith("hydra.")} for entry in entries
    ]
    keys = dict.fromkeys(key for own in chosen for key in own)
    for entry, own in zip(entries, chosen, strict=True):
        missing = "(default)" if entry.config else ""  # not known before it has started
        entry.varied = {
            key: own[key] if key in own else _plain(entry.config[key]) if key in entry.config else missing
            for key in keys
        }
    same = [key for key in keys if len({entry.varied[key] for entry in entries} - {""}) <= 1]
    for entry in entries:
        for key in same:
            del entry.varied[key]


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def seeds(grid: Comparison) -> list[tuple[str, list[float]]]:
    """Each setting that was run with several seeds, from the best mean to the worst, and its values."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for entry in grid.measured:
        assert entry.value is not None
        groups.setdefault(entry.seedless, []).append(entry.value)
    if all(len(values) < 2 for values in groups.values()):
        return []
    sign = 1 if grid.mode == "min" else -1

    def rank(group: tuple[Any, list[float]]) -> tuple[bool, float]:
        mean = statistics.fmean(group[1])
        return math.isnan(mean), sign * mean

    return [
        (", ".join(f"{k}={v}" for k, v in key) or "all seeds", values)
        for key, values in sorted(groups.items(), key=rank)
    ]


def effects(grid: Comparison) -> dict[str, list[tuple[str, list[float]]]]:
    """For each setting that varies, its values and the metric of all points that have it."""
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for key in grid.varied:
        values: dict[str, list[float]] = {}
        for entry in grid.measured:
            assert entry.value is not None
            values.setdefault(entry.varied[key], []).append(entry.value)
        if len(values) > 1:
            found[key] = [(value, values[value]) for value in sorted(values, key=_order)]
    return found


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


# --- Files and the terminal ----------------------------------------------------------------------------------------


def write_csv(grid: Comparison) -> Path:
    """One row for each point: what varied, how it ended, all its figures."""
    metrics = list(dict.fromkeys(name for e in grid.entries for name in e.summary.get("final") or {}))
    facts = ["step", "epoch", "world_size", "training_seconds", "samples_per_second", "peak_memory_mb"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    best = [f"best/{name}" for name in metrics if name.startswith(("eval/", "test/"))]
    table.writerow(["point", "state", *grid.varied, grid.metric + " (compared)", *metrics, *best, *facts, "reason"])
    for entry in grid.entries:
        final, kept = entry.summary.get("final") or {}, entry.summary.get("best") or {}
        table.writerow(
            [entry.name, entry.state, *entry.varied.values(), entry.value, *map(final.get, metrics)]
            + [kept.get(name.removeprefix("best/")) for name in best]
            + [*map(entry.summary.get, facts), entry.reason]
        )
    path = grid.path / "grid.csv"
    write_text(path, text.getvalue())
    return path


def print_table(grid: Comparison) -> None:
    """Print the best points, what failed, and the command that repeats the best one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else 200, highlight=False)
    seconds = "training_seconds"
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for heading in ("", *grid.varied, grid.metric, "state", "seconds"):
        table.add_column(
            Text(heading), justify="right" if heading in (grid.metric, "seconds", "") else "left", overflow="fold"
        )
    for place, entry in enumerate(grid.entries[:ROWS], start=1):
        cells = [str(place), *entry.varied.values(), report.figure_text(entry.value, 5), entry.state]
        table.add_row(*map(Text, [*cells, report.figure_text(entry.summary.get(seconds), 3)]))
    console.print(table)
    if len(grid.entries) > ROWS:
        console.print(Text(f"and {len(grid.entries) - ROWS} more in grid.csv"))
    for label, values in seeds(grid)[:5]:
        spread = _spread(values)
        text = f"{statistics.fmean(values):.5g}" + (f" ± {spread:.2g}" if spread is not None else "")
        console.print(Text(f"mean       {text} of {len(values)} seeds: {label}"))
    if grid.measured:
        console.print(Text(f"best       {grid.metric} {grid.measured[0].value:.5g}: {grid.measured[0].label}"))
        console.print(Text(f"           {grid.repeat(grid.measured[0])}"), soft_wrap=True)
    here = os.path.relpath(grid.path / "grid.html")
    console.print(Text(f"comparison {here if not here.startswith('..') else grid.path / 'grid.html'}"), soft_wrap=True)


# --- Pictures and the page -----------------------------------------------------------------------------------------


def draw(grid: Comparison) -> Path | None:
    """Draw grid.png: the curves, and the effect of each setting."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = _panels(grid)
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context(report._style("#24292f")):
        figure = Figure(figsize=(6.2 * columns, 3.8 * rows), layout="constrained", facecolor="white")
        for place, panel in enumerate(panels, start=1):
            panel(figure.add_subplot(rows, columns, place))
        path = grid.path / "grid.png"
        with replacing(path, "wb") as file:
            figure.savefig(file, dpi=130)
    return path


def _panels(grid: Comparison) -> list[Any]:
    panels: list[Any] = []
    if any(len(entry.curve[0]) > 1 for entry in grid.entries):
        panels.append(lambda axes: _draw_curves(axes, grid))
    for key, values in effects(grid).items():
        panels.append(lambda axes, key=key, values=values: _draw_effect(axes, grid, key, values))
    return panels


def _draw_curves(axes: Any, grid: Comparison) -> None:
    import numpy as np

    named = [entry for entry in grid.measured if entry.curve[0]][:NAMED]
    grey = [entry for entry in grid.entries if entry.curve[0] and entry not in named]
    ground = axes.xaxis.label.get_color()
    for entry in grey:
        axes.plot(*report._envelope(*map(np.asarray, entry.curve)), color=ground, alpha=0.18, linewidth=0.8)
    for place, entry in reversed(list(enumerate(named))):
        marker = "o" if len(entry.curve[0]) <= 30 else None
        x, y = report._envelope(*map(np.asarray, entry.curve))
        label = " ".join(entry.varied.values()) or entry.name
        label = label if len(label) <= 34 else label[:33] + "…"
        axes.plot(x, y, color=COLOURS[place], linewidth=1.7, marker=marker, markersize=3, label=f"{place + 1}. {label}")
    ends = np.asarray([v for entry in grid.entries for v in entry.curve[1] if math.isfinite(v)])
    if len(ends) and ends.min() > 0 and ends.max() > 50 * ends.min():
        axes.set_yscale("log")
    axes.set_title(f"{grid.metric}: the best {len(named)} of {len(named) + len(grey)}", parse_math=False)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        keys = ", ".join(key.rsplit(".", 1)[-1] for key in grid.varied)
        below = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "ncols": 2, "borderaxespad": 0, "alignment": "left"}
        legend = axes.legend(handles[::-1], labels[::-1], title=keys, frameon=False, fontsize=8, **below)
        for text in [*legend.get_texts(), legend.get_title()]:
            text.set(parse_math=False, fontsize=8)


def _draw_effect(axes: Any, grid: Comparison, key: str, values: Sequence[tuple[str, list[float]]]) -> None:
    finite = [[v for v in own if math.isfinite(v)] for _, own in values]
    for place, own in enumerate(finite):
        alpha = max(0.15, min(0.7, 8 / (len(own) + 8)))
        axes.plot([place] * len(own), own, "o", color=report.TRAIN, alpha=alpha, markersize=5, markeredgewidth=0)
    means = [(place, statistics.fmean(own)) for place, own in enumerate(finite) if own]
    if means:
        numbers = key != SEED and all(not _order(value)[0] for value, _ in values)
        line = "-" if numbers else ""  # a line between words or seeds would mean nothing
        axes.plot(
            *zip(*means, strict=True), line + "D", color=report.EVALUATED, linewidth=1.4, markersize=6, label="mean"
        )
        axes.plot(
            [place for place, own in enumerate(finite) if own],
            [grid.better(own) for own in finite if own],
            line.replace("-", ":") + "_",
            color=report.EVALUATED,
            linewidth=1.0,
            markersize=12,
            label="best",
        )
    every = [v for own in finite for v in own]
    if every and min(every) > 0 and max(every) > 50 * min(every):
        axes.set_yscale("log")
    names = [value if len(value) <= 18 else value[:17] + "…" for value, _ in values]
    crowded = sum(map(len, names)) > 48
    axes.set_xticks(range(len(names)), names, rotation=35 if crowded else 0, ha="right" if crowded else "center")
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_title(f"{grid.metric} by {key}", parse_math=False)
    axes.grid(True, axis="y")
    axes.legend(frameon=False, fontsize=8)


def write_page(grid: Comparison) -> Path:
    """Write grid.html: one file that needs nothing else; it links to the reports of the points."""
    name = grid.path.resolve().name
    finished = sum(entry.state == "finished" for entry in grid.entries)
    failed = sum(entry.state == "failed" for entry in grid.entries)
    tone = "bad" if failed else "good" if finished == len(grid.entries) else "open"
    status = f"{finished} of {len(grid.entries)} finished" + (f", {failed} failed" if failed else "")
    parts = [
        f'<header><h1>{escape(name)}</h1><span class="status {tone}">{escape(status)}</span></header>',
        _tiles(grid),
        report._section("Best run", _best(grid)),
        report._section("Curves and effects", _pictures(grid)),
        report._section("Seeds", _seeds(grid)),
        report._section("Effect of each setting", _effects(grid)),
        report._section("Points", _points(grid)),
        report._section("Failures", _failures(grid)),
    ]
    style = report.STYLE + (
        "a { color: var(--blue); } td.n { text-align: right; } tr.first td { font-weight: 600; }\n"
        "details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }\n"
    )
    path = grid.path / "grid.html"
    write_text(
        path, report.PAGE.format(title=escape(name), style=style, body="\n".join(part for part in parts if part))
    )
    return path


def _tiles(grid: Comparison) -> str:
    figures: dict[str, Any] = {}
    if grid.measured:
        figures[f"best {grid.metric}"] = grid.measured[0].value
    figures["points"] = len(grid.entries)
    figures["settings varied"] = len(grid.varied)
    seconds = [entry.summary.get("training_seconds") for entry in grid.measured]
    known = [value for value in seconds if isinstance(value, int | float)]
    if known:
        figures["seconds of training, mean"] = statistics.fmean(known)
    cells = "".join(
        f"<div><b>{escape(report.figure_text(value, 4))}</b><span>{escape(key)}</span></div>"
        for key, value in figures.items()
    )
    return f'<div class="tiles">{cells}</div>'


def _best(grid: Comparison) -> str:
    if not grid.measured:
        return "<p>No point has finished yet.</p>"
    best = grid.measured[0]
    return f"<div>{_link(best)}</div><p>To repeat it:</p><pre>{escape(grid.repeat(best))}</pre>"


def _link(entry: Entry) -> str:
    text = escape(entry.label)
    if not (entry.path / "report.html").exists():
        return text
    return f'<a href="{escape(quote(entry.name), quote=True)}/report.html">{text}</a>'


def _pictures(grid: Comparison) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    pictures = []
    for number, panel in enumerate(_panels(grid)):
        with rc_context(report._style(report.INK) | {"svg.hashsalt": f"grid {number}"}):
            figure = Figure(figsize=(5.4, 3.4), layout="constrained")
            axes = figure.add_subplot()
            panel(axes)
            figure.patch.set_alpha(0)
            axes.patch.set_alpha(0)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        picture = text.getvalue()
        pictures.append(f"<figure>{picture[picture.index('<svg') :].replace(report.INK, 'currentColor')}</figure>")
    return f'<div class="curves">{"".join(pictures)}</div>' if pictures else ""


def _seeds(grid: Comparison) -> str:
    rows = [
        (label, statistics.fmean(values), _spread(values), min(values), max(values), len(values))
        for label, values in seeds(grid)
    ]
    head = ("setting", f"mean {grid.metric}", "standard deviation", "least", "greatest", "seeds")
    return report._table(head, rows) if rows else ""


def _effects(grid: Comparison) -> str:
    rows = [
        (key, value, statistics.fmean(own), _spread(own), grid.better(own), len(own))
        for key, values in effects(grid).items()
        for value, own in values
    ]
    head = ("setting", "value", f"mean {grid.metric}", "standard deviation", "best", "points")
    note = "<p>Over all points that have the value, whatever their other settings.</p>"
    return report._table(head, rows) + note if rows else ""


def _points(grid: Comparison) -> str:
    final = list(
        dict.fromkeys(n for e in grid.entries for n in e.summary.get("final") or {} if n.startswith(("eval/", "test/")))
    )
    head = "".join(
        f"<th>{escape(text)}</th>"
        for text in ("", *grid.varied, grid.metric, "state", *(f"final {n}" for n in final), "")
    )
    rows = []
    for place, entry in enumerate(grid.entries, start=1):
        figures = [report.figure_text((entry.summary.get("final") or {}).get(name), 4) for name in final]
        cells = [str(place), *entry.varied.values(), report.figure_text(entry.value, 5)]
        tone = {"finished": "good", "failed": "bad"}.get(entry.state, "open")
        page = f'<a href="{escape(quote(entry.name), quote=True)}/report.html">report</a>'
        rows.append(
            f"<tr{' class=first' if place == 1 and entry in grid.measured else ''}>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + f'<td class="{tone}">{escape(entry.state)}</td>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in figures)
            + f"<td>{page if (entry.path / 'report.html').exists() else ''}</td></tr>"
        )
    return f'<div class="scroll tall"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _failures(grid: Comparison) -> str:
    parts = []
    for entry in grid.entries:
        if entry.state == "failed":
            output = str(read_json(entry.path / FAILED).get("output", ""))
            link = f'<p><a href="{escape(quote(f"{entry.name}/{OUTPUT}"), quote=True)}">{OUTPUT}</a></p>'
            parts.append(
                f"<details><summary>{escape(entry.label)}: {escape(entry.reason)}</summary>"
                f"<pre>{escape(output[-3000:])}</pre>{link}</details>"
            )
    return "".join(parts)
