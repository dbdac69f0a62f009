"""What a person sees while a sweep runs: a line for each running trial and a count; plain lines off a terminal."""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.core.files import number, numbers, read_json

if TYPE_CHECKING:
    from launcher.sweep.executor import Executor, Running
    from launcher.sweep.trials import Trial

REFRESH = 0.5  # seconds between two pictures
QUIET = 30.0  # seconds between two plain lines about what is running
SHOWN = 20  # running trials on a terminal; more only as a number


class Board:
    """The progress of a sweep on standard output.

    Args:
        total: Trials of the sweep.
        done: Of those, finished before.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._shown = total, done, time.monotonic()
        self._live: Any = None
        self._grid: Executor | None = None
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

    def say(self, trial: "Trial", text: str) -> None:
        """Print a line about a trial."""
        self.note(f"trial {trial.index:<4} {text}: {trial.label}")

    def ended(self, trial: "Trial", seconds: float) -> None:
        """Print how a trial ended."""
        self.done += trial.state == "finished"
        count = f"[{self.done}/{self.total}]"
        if trial.state == "failed":
            self.say(
                trial, f"{count} FAILED after {seconds:.1f} s ({trial.reason}; see {_near(trial.path)}/output.log)"
            )
        else:
            figure = ""
            if trial.state == "finished" and (value := figure_of(trial.path, trial.metric[0])) is not None:
                figure = f", {trial.metric[0]} {value:.4g}"
            self.say(trial, f"{count} {trial.state} in {seconds:.1f} s{figure}")

    def update(self, sweep: "Executor") -> None:
        """Show what is running."""
        self._grid = sweep
        now = time.monotonic()
        if now - self._shown < (REFRESH if self._live else QUIET):
            return
        self._shown = now
        if self._live:
            self._live.refresh()
        else:
            running = "; ".join(f"{run.trial.label} ({how_far(run)})" for run in sweep.running[:4])
            self.note(f"{self._count(sweep)}{': ' + running if running else ''}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def _count(self, sweep: "Executor") -> str:
        states = Counter(trial.state for trial in sweep.trials)
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
                table.add_row(Text(run.trial.label), Text(how_far(run)))
            if len(self._grid.running) > SHOWN:
                table.add_row(Text(f"and {len(self._grid.running) - SHOWN} more"), Text(""))
            table.add_row(
                Text(self._count(self._grid), style="bold"), Text(f"{time.monotonic() - self._started:.0f} s")
            )
        return table


def how_far(run: "Running") -> str:
    """Epoch, loss and seconds of a running trial, from the last row of its record."""
    parts = []
    row = last_row(run.trial.path / "metrics.jsonl")
    if "epoch" in row:
        parts.append(f"epoch {row['epoch']:.3g}/{run.trial.epochs}")
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
