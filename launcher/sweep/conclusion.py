"""What a comparison leaves: grid.csv, grid.png, grid.html and a table on the terminal, made of a sweep's files.

launcher compare outputs/grids/NAME --metric eval/accuracy
"""

import csv
import io
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from launcher.config.places import check_length
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_text
from launcher.run import report
from launcher.sweep.comparison import Comparison, read_sweep
from launcher.sweep.failure import FAILED, OUTPUT
from launcher.sweep.pictures import draw, svg_pictures
from launcher.sweep.statistics import best
from launcher.sweep.trial_state import State

ROWS = 25  # of the table on a terminal
FACTS = ("step", "epoch", "world_size", "training_seconds", "samples_per_second", "peak_memory_mb")  # of summary.json
STYLE = """
a { color: var(--blue); } td.n { text-align: right; } tr.first td { font-weight: 600; }
details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
"""


def compare(path: Path, metric: str | None, mode: str | None) -> None:
    """Write grid.csv, grid.png and grid.html, and print the table; see `read_sweep` for what it takes and raises."""
    check_length(path, "")
    path = path.resolve()
    sweep = read_sweep(path, metric, mode)
    unwritten = None
    try:
        write_csv(sweep)
        draw(sweep)
        write_page(sweep)
    except OSError as error:  # somebody else's sweep, or a full disk
        unwritten = error
    print_table(sweep)
    if unwritten is not None:
        print(f"grid.csv, grid.png and grid.html cannot be written into {path}: {unwritten.strerror}")


def conclude(path: Path, metric: str | None, mode: str | None) -> None:
    """Compare a sweep that has just run, by checkpoint.best where none of its trials turned out to have the metric."""
    try:
        compare(path, metric, mode)
    except ConfigError as error:
        if metric is None:
            raise
        print(f"{error} Compared by checkpoint.best in its place.", flush=True)
        compare(path, None, None)


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


def write_page(sweep: Comparison) -> Path:
    """Write grid.html: one file that needs nothing else, and links to the reports of the trials."""
    from markupsafe import Markup

    failed = [entry for entry in sweep.entries if entry.state == State.FAILED]
    return report.write_page(
        sweep.path / "grid.html",
        sweep.path.resolve().name,
        Path(__file__).with_name("comparison.html.j2"),
        STYLE.lstrip(),
        sweep=sweep,
        tiles=_tiles(sweep),
        pictures=list(map(Markup, svg_pictures(sweep))),
        metrics=[name for name in sweep.metrics if name.startswith(("eval/", "test/"))],
        best=lambda values: best(values, sweep.mode),
        printed={entry.name: str(read_json(entry.path / FAILED).get("output", ""))[-3000:] for entry in failed},
        output=OUTPUT,
    )


def _tiles(sweep: Comparison) -> dict[str, Any]:
    """The few figures that one looks for first."""
    tiles: dict[str, Any] = {f"best {sweep.metric}": sweep.measured[0].value} if sweep.measured else {}
    tiles |= {"trials": len(sweep.entries), "settings varied": len(sweep.varied)}
    seconds = [entry.summary.get("training_seconds") for entry in sweep.measured]
    known = [value for value in seconds if isinstance(value, int | float)]
    return tiles | ({"seconds of training, mean": statistics.fmean(known)} if known else {})


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
    for sample in sweep.seeds[:5]:
        deviation = "" if sample.deviation is None else f" ± {sample.deviation:.2g}"
        console.print(Text(f"mean       {sample.mean:.5g}{deviation} of {len(sample.values)} seeds: {sample.label}"))
    if sweep.measured:
        first = sweep.measured[0]
        console.print(Text(f"best       {sweep.metric} {first.value:.5g}: {first.label}"))
        console.print(Text(f"           {sweep.repeat(first)}"), soft_wrap=True)
    page = sweep.path / "grid.html"
    here = os.path.relpath(page)
    console.print(Text(f"comparison {page if here.startswith('..') else here}"), soft_wrap=True)
