"""The page of a comparison, grid.html: one file that needs nothing else; it links to the reports of the trials."""

import statistics
from pathlib import Path
from typing import Any

from launcher.core.files import read_json, write_text
from launcher.run import report
from launcher.sweep.comparison import Comparison
from launcher.sweep.failure import FAILED, OUTPUT
from launcher.sweep.pictures import svg_pictures
from launcher.sweep.statistics import best
from launcher.sweep.trial_state import State

STYLE = """
a { color: var(--blue); } td.n { text-align: right; } tr.first td { font-weight: 600; }
details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
"""


def write_page(sweep: Comparison) -> Path:
    """Write grid.html."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = report.figure_text
    body = environment.get_template("comparison.html.j2").render(
        sweep=sweep,
        name=sweep.path.resolve().name,
        tiles=_tiles(sweep),
        pictures=list(map(Markup, svg_pictures(sweep))),
        metrics=[name for name in sweep.metrics if name.startswith(("eval/", "test/"))],
        best=lambda values: best(values, sweep.mode),
        printed={entry.name: _printed(entry.path) for entry in sweep.entries if entry.state == State.FAILED},
        output=OUTPUT,
    )
    path = sweep.path / "grid.html"
    title = escape(sweep.path.resolve().name)
    write_text(path, report.PAGE.format(title=title, style=report.STYLE + STYLE.lstrip(), body=body.strip()))
    return path


def _tiles(sweep: Comparison) -> dict[str, Any]:
    """The few figures that one looks for first."""
    tiles: dict[str, Any] = {f"best {sweep.metric}": sweep.measured[0].value} if sweep.measured else {}
    tiles |= {"trials": len(sweep.entries), "settings varied": len(sweep.varied)}
    seconds = [entry.summary.get("training_seconds") for entry in sweep.measured]
    known = [value for value in seconds if isinstance(value, int | float)]
    return tiles | ({"seconds of training, mean": statistics.fmean(known)} if known else {})


def _printed(path: Path) -> str:
    """The end of what a failed trial has printed."""
    return str(read_json(path / FAILED).get("output", ""))[-3000:]
