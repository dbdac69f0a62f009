"""What a comparison leaves: grid.csv, grid.png, grid.html and a table on the terminal, made of a sweep's files.

launcher compare outputs/grids/NAME --metric eval/accuracy
"""

import csv
import io
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.config.places import check_length
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_text
from launcher.run import report
from launcher.sweep.answer import METHOD, answer_of
from launcher.sweep.comparison import Comparison, read_sweeps
from launcher.sweep.failure import FAILED, OUTPUT
from launcher.sweep.latex import write_latex
from launcher.sweep.pictures import draw, svg_pictures
from launcher.sweep.seed_groups import Group, interval_text, label_of, p_text, spread_text
from launcher.sweep.statistics import best
from launcher.sweep.trial_state import State

ROWS = 25  # of the table on a terminal
LINES = 5  # of groups, and of pairs, below that table
PAIRS = 60  # of the page: those with the best groups
FACTS = ("step", "epoch", "world_size", "training_seconds", "samples_per_second", "peak_memory_mb")  # of summary.json
STYLE = """
a { color: var(--blue); } td.n { text-align: right; } tr.first td { font-weight: 600; }
td.wide { min-width: 14rem; overflow-wrap: anywhere; } section.wide { flex-basis: 100%; }
td.keep { white-space: nowrap; } .verdict { font-weight: 600; margin-bottom: .5rem; }
details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
"""


def compare(
    paths: Sequence[Path],
    metric: str | None,
    mode: str | None,
    output: Path | None = None,
    latex: bool = False,
    as_json: bool = False,
) -> None:
    """Write the files of a comparison, and print it.

    Args:
        paths: Directories of sweeps, at least one; several are compared as if they were one.
        metric: See `read_sweeps`, which says what is raised.
        mode: See there.
        output: Directory of the files; by default the first of the sweeps.
        latex: Write a table for LaTeX, grid.tex, too.
        as_json: Print one JSON object and nothing else; see `answer_of`.
    """
    for path in paths:
        check_length(path, "")
    place = (output or paths[0]).resolve()
    sweep = read_sweeps([path.resolve() for path in paths], metric, mode, place)
    unwritten = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_csv(sweep)
        write_answers(sweep)
        if latex:
            write_latex(sweep)
        draw(sweep)
        write_page(sweep)
    except OSError as error:  # somebody else's sweep, or a full disk
        unwritten = error
    if as_json:
        print(json.dumps(answer_of(sweep), allow_nan=False))
    else:
        print_table(sweep)
    if unwritten is not None:
        where = sys.stderr if as_json else sys.stdout
        print(f"grid.csv, grid.png and grid.html cannot be written into {place}: {unwritten.strerror}", file=where)


def conclude(path: Path, metric: str | None, mode: str | None) -> None:
    """Compare a sweep that has just run, by checkpoint.best where none of its trials turned out to have the metric."""
    try:
        compare([path], metric, mode)
    except ConfigError as error:
        if metric is None:
            raise
        print(f"{error} Compared by checkpoint.best in its place.", flush=True)
        compare([path], None, None)


def write_csv(sweep: Comparison) -> None:
    """Write grid.csv, one row for each trial: what varied, how it ended, all its metrics."""
    metrics = sweep.metrics
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    evaluated = [name for name in metrics if name.startswith(("eval/", "test/"))]
    heading = ["trial", "state", *sweep.varied, sweep.metric + " (compared)", *metrics]
    table.writerow([*heading, *(f"best/{name}" for name in evaluated), *FACTS, "reason"])
    for entry in sweep.entries:
        at_best = entry.summary.get("best") or {}
        row = [entry.name, entry.state, *entry.varied.values(), entry.value, *map(entry.final.get, metrics)]
        table.writerow([*row, *map(at_best.get, evaluated), *map(entry.summary.get, FACTS), entry.reason])
    write_text(sweep.path / "grid.csv", text.getvalue())


def write_answers(sweep: Comparison) -> None:
    """Write grid_groups.csv, grid_pairs.csv and grid_effects.csv: what `answer_of` has of these, one row each."""
    answer = answer_of(sweep)
    for name in ("groups", "pairs", "effects"):
        rows = answer[name]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(list(rows[0]) if rows else [])
        for row in rows:
            table.writerow([_cell(value) for value in row.values()])
        write_text(sweep.path / f"grid_{name}.csv", text.getvalue())


def _cell(value: Any) -> Any:
    """A value of JSON as one cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return " × ".join(value) if isinstance(value, tuple) else value


def write_page(sweep: Comparison) -> Path:
    """Write grid.html: one file that needs nothing else, and links to the reports of the trials."""
    from markupsafe import Markup

    failed = [entry for entry in sweep.entries if entry.state == State.FAILED]
    tested = [pair for pair in sweep.pairs if pair.p is not None]
    return report.write_page(
        sweep.path / "grid.html",
        sweep.name,
        Path(__file__).with_name("comparison.html.j2"),
        STYLE.lstrip(),
        sweep=sweep,
        tiles=_tiles(sweep),
        pictures=list(map(Markup, svg_pictures(sweep))),
        metrics=[name for name in sweep.metrics if name.startswith(("eval/", "test/"))],
        best=lambda values: best(values, sweep.mode),
        outputs={entry.name: os.path.relpath(entry.path / OUTPUT, sweep.path) for entry in failed},
        tested=tested[:PAIRS],
        untold=len(tested[PAIRS:]),
        method=METHOD,
        p_text=p_text,
        label_of=label_of,
        interval=interval_text,
        printed={entry.name: str(read_json(entry.path / FAILED).get("output", ""))[-3000:] for entry in failed},
        output=OUTPUT,
    )


def _tiles(sweep: Comparison) -> dict[str, Any]:
    """The few figures that one looks for first."""
    tiles: dict[str, Any] = {}
    if sweep.repeated:
        first = sweep.repeated[0]
        tiles[f"best mean {sweep.metric} of {first.n} seeds, ± its 95 % interval"] = _mean_text(first)
    if sweep.measured:
        tiles[f"best {sweep.metric} of one trial"] = sweep.measured[0].value
    tiles |= {"trials": len(sweep.entries), "settings varied": len(sweep.varied)}
    seconds = [entry.summary.get("training_seconds") for entry in sweep.measured]
    known = [value for value in seconds if isinstance(value, int | float)]
    return tiles | ({"seconds of training, mean": statistics.fmean(known)} if known else {})


def _mean_text(group: Group) -> str:
    """A mean and half of its interval, short."""
    estimate = group.estimate
    half = "" if estimate.high is None else f" ± {estimate.high - estimate.mean:.2g}"
    return f"{estimate.mean:.4g}{half}"


def print_table(sweep: Comparison) -> None:
    """Print the best trials, what failed, and the command that repeats the best one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else 200, highlight=False)
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for heading in ("", *sweep.varied, sweep.metric, "state", "seconds"):
        side = "right" if heading in (sweep.metric, "seconds", "") else "left"
        table.add_column(Text(heading), justify=side, overflow="fold")  # type: ignore[arg-type]
    for place, entry in enumerate(sweep.entries[:ROWS], start=1):
        seconds = report.figure_text(entry.summary.get("training_seconds"), 3)
        value = report.figure_text(entry.value, 5)
        table.add_row(*map(Text, [str(place), *entry.varied.values(), value, entry.state, seconds]))
    console.print(table)
    if len(sweep.entries) > ROWS:
        console.print(Text(f"and {len(sweep.entries) - ROWS} more in grid.csv"))
    for line in _answer_lines(sweep):
        console.print(Text(line))
    if sweep.measured:
        first = sweep.measured[0]
        console.print(Text(f"best       {sweep.metric} {first.value:.5g}: {first.label}"))
        console.print(Text(f"           {sweep.repeat(first)}"), soft_wrap=True)
    page = sweep.path / "grid.html"
    here = os.path.relpath(page)
    console.print(Text(f"comparison {page if here.startswith('..') else here}"), soft_wrap=True)


def _answer_lines(sweep: Comparison) -> list[str]:
    """The best groups, how they compare with the best, what explains the spread, and the Pareto front."""
    lines = []
    for group in sweep.repeated[:LINES]:
        lines.append(f"mean       {spread_text(group)} of {group.n} seed{'s' * (group.n > 1)}: {group.label}")
    if sweep.verdict:
        lines.append(f"pairs      {sweep.verdict}")
    against = [pair for pair in sweep.pairs if pair.p is not None and pair.a is sweep.groups[0]][:LINES]
    for pair in against:
        who = f"{pair.a.label} against {pair.b.label}"
        lines.append(f"           {pair.difference:.4g} {interval_text(pair)}: {who}: {pair.verdict}")
    effects = [] if sweep.analysis is None else [effect for effect in sweep.analysis.effects if effect.p is not None]
    for number, effect in enumerate(effects[:LINES]):
        share = f"{effect.share:.1%} {effect.label}: {effect.verdict}, p {p_text(effect.p, True)}"
        lines.append(f"{'' if number else 'effect':10} {share}")
    for number, point in enumerate([point for point in sweep.front if point.on_front][:LINES]):
        values = ", ".join(f"{name} {value:.5g}" for name, value in zip(sweep.modes, point.values, strict=True))
        lines.append(f"{'' if number else 'front':10} {values}: {label_of(point.settings)}")
    return lines
