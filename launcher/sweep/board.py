"""What a person sees while a grid runs: a line for each running point and a count; plain lines off a terminal."""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.core.files import number, numbers, read_json

if TYPE_CHECKING:
    from launcher.sweep.executor import Grid, Running
    from launcher.sweep.trials import Point

REFRESH = 0.5  # seconds between two pictures
QUIET = 30.0  # seconds between two plain lines about what is running
SHOWN = 20  # running points on a terminal; more only as a number


class Board:
    """The progress of a grid on standard output.

    Args:
        total: Points of the grid.
        done: Of those, finished before.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._shown = total, done, time.monotonic()
        self._live: Any = None
        self._grid: Grid | None = None
        self._started = time.monotonic()
        if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stdout)
            self._live = Live(
                console=console, auto_refresh=False, transient=True, get_renderable=lambda: self._picture(console.width)
            )
            self._live.start()

    def note(self, text: str) -> None:
        """Print a line."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def say(self, point: "Point", text: str) -> None:
        """Print a line about a point."""
        self.note(f"point {point.index:<4} {text}: {point.label}")

    def ended(self, point: "Point", seconds: float) -> None:
        """Print how a point ended."""
        self.done += point.state == "finished"
        count = f"[{self.done}/{self.total}]"
        if point.state == "failed":
            self.say(
                point, f"{count} FAILED after {seconds:.1f} s ({point.reason}; see {_near(point.path)}/output.log)"
            )
        else:
            figure = ""
            if point.state == "finished" and (value := figure_of(point.path, point.metric[0])) is not None:
                figure = f", {point.metric[0]} {value:.4g}"
            self.say(point, f"{count} {point.state} in {seconds:.1f} s{figure}")

    def update(self, grid: "Grid") -> None:
        """Show what is running."""
        self._grid = grid
        now = time.monotonic()
        if now - self._shown < (REFRESH if self._live else QUIET):
            return
        self._shown = now
        if self._live:
            self._live.refresh()
        else:
            running = "; ".join(f"{run.point.label} ({how_far(run)})" for run in grid.running[:4])
            self.note(f"{self._count(grid)}{': ' + running if running else ''}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def _count(self, grid: "Grid") -> str:
        states = Counter(point.state for point in grid.points)
        parts = [f"{self.done}/{self.total} finished"]
        parts += [f"{states[name]} {name}" for name in ("running", "failed", "stopped", "waiting") if states[name]]
        return ", ".join(parts)

    def _picture(self, width: int) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        if self._grid is not None:
            for run in self._grid.running[:SHOWN]:
                table.add_row(Text(run.point.label), Text(how_far(run)))
            if len(self._grid.running) > SHOWN:
                table.add_row(Text(f"and {len(self._grid.running) - SHOWN} more"), Text(""))
            table.add_row(
                Text(self._count(self._grid), style="bold"), Text(f"{time.monotonic() - self._started:.0f} s")
            )
        return table


def how_far(run: "Running") -> str:
    """Epoch, loss and seconds of a running point, from the last row of its record."""
    parts = []
    row = last_row(run.point.path / "metrics.jsonl")
    if "epoch" in row:
        parts.append(f"epoch {row['epoch']:.3g}/{run.point.epochs}")
    if isinstance(loss := number(row.get("train/loss", row.get("eval/loss"))), float):
        parts.append(f"loss {loss:.4g}")
    return "  ".join([*parts, f"{time.monotonic() - run.started:.0f} s"])


def last_row(record: Path) -> dict[str, Any]:
    """The last whole row of a record; empty where there is none."""
    try:
        with open(record, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().rpartition(b"\n")[0].splitlines()
        row = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def figure_of(path: Path, metric: str | None) -> float | None:
    """A metric of a finished run: of its best evaluation where that is kept, else of its last."""
    summary = read_json(path / "summary.json")
    value = (numbers(summary.get("final")) | numbers(summary.get("best"))).get(str(metric))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _near(path: Path) -> str:
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here
