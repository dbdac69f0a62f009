"""The table of a comparison: grid.csv, and what is printed."""

import csv
import io
import os
import sys
from pathlib import Path

from launcher.core.files import write_text
from launcher.run.report import figure_text
from launcher.sweep.comparison import Comparison

ROWS = 25  # of the table on a terminal
FACTS = ("step", "epoch", "world_size", "training_seconds", "samples_per_second", "peak_memory_mb")  # of summary.json


def write_csv(sweep: Comparison) -> Path:
    """Write grid.csv, one row for each trial: what varied, how it ended, all its metrics."""
    metrics = sweep.metrics
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    best = [name for name in metrics if name.startswith(("eval/", "test/"))]
    heading = ["trial", "state", *sweep.varied, sweep.metric + " (compared)", *metrics]
    table.writerow([*heading, *(f"best/{name}" for name in best), *FACTS, "reason"])
    for entry in sweep.entries:
        kept = entry.summary.get("best") or {}
        row = [entry.name, entry.state, *entry.varied.values(), entry.value, *map(entry.final.get, metrics)]
        table.writerow([*row, *map(kept.get, best), *map(entry.summary.get, FACTS), entry.reason])
    path = sweep.path / "grid.csv"
    write_text(path, text.getvalue())
    return path


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
        cells = [str(place), *entry.varied.values(), figure_text(entry.value, 5), entry.state]
        table.add_row(*map(Text, [*cells, figure_text(entry.summary.get("training_seconds"), 3)]))
    console.print(table)
    if len(sweep.entries) > ROWS:
        console.print(Text(f"and {len(sweep.entries) - ROWS} more in grid.csv"))
    for sample in sweep.seeds[:5]:
        deviation = "" if sample.deviation is None else f" ± {sample.deviation:.2g}"
        console.print(Text(f"mean       {sample.mean:.5g}{deviation} of {len(sample.values)} seeds: {sample.label}"))
    if sweep.measured:
        best = sweep.measured[0]
        console.print(Text(f"best       {sweep.metric} {best.value:.5g}: {best.label}"))
        console.print(Text(f"           {sweep.repeat(best)}"), soft_wrap=True)
    page = sweep.path / "grid.html"
    here = os.path.relpath(page)
    console.print(Text(f"comparison {page if here.startswith('..') else here}"), soft_wrap=True)
