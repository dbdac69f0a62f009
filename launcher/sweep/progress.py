"""What a person sees while a sweep runs: a line for each running trial and a count; plain lines off a terminal."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from launcher.core.files import number
from launcher.sweep.feed import Feed
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial, metric_of

REFRESH = 0.5  # seconds between two pictures
QUIET = 30.0  # seconds between two plain lines about what is running
SHOWN = 20  # running trials on a terminal; more only as a number


class ProgressDisplay:
    """The progress of all trials of a sweep on standard output; a feed says how many there will be."""

    def __init__(self, trials: Sequence[Trial], feed: Feed | None = None) -> None:
        self.trials, self._feed, self._started = trials, feed, time.monotonic()
        self._shown = self._started
        self._running: Sequence[tuple[Trial, float]] = ()
        self._live: Any = None
        if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stdout)
            self._live = Live(
                console=console, auto_refresh=False, transient=True, get_renderable=lambda: self._picture(console.width)
            )
            self._live.start()

    @property
    def total(self) -> int:
        """How many there are in the end, as far as is known."""
        return len(self.trials) if self._feed is None else self._feed.total

    def note(self, text: str) -> None:
        """Print a line."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def say(self, trial: Trial, text: str) -> None:
        """Print a line about a trial."""
        self.note(f"trial {trial.index:<4} {text}: {trial.label}")

    def ended(self, trial: Trial, seconds: float) -> None:
        """Print how a trial ended."""
        count = f"[{self._counts()[State.FINISHED]}/{self.total}]"
        if trial.state == State.FAILED:
            here = os.path.relpath(trial.path)
            near = trial.path if here.startswith("..") else here
            self.say(trial, f"{count} FAILED after {seconds:.1f} s ({trial.reason}; see {near}/output.log)")
            return
        metric = ""
        if trial.state == State.FINISHED and (value := metric_of(trial.path, trial.metric)) is not None:
            metric = f", {trial.metric} {value:.4g}"
        self.say(trial, f"{count} {trial.state} in {seconds:.1f} s{metric}")

    def update(self, running: Sequence[tuple[Trial, float]]) -> None:
        """Show now and then what is running, and since when, in seconds of time.monotonic."""
        self._running, now = running, time.monotonic()
        if now - self._shown < (REFRESH if self._live else QUIET):
            return
        self._shown = now
        if self._live:
            self._live.refresh()
        else:
            listed = "; ".join(f"{trial.label} ({how_far(trial, started)})" for trial, started in running[:4])
            self.note(f"{self._count()}{': ' + listed if listed else ''}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def _counts(self) -> Counter[State]:
        return Counter(trial.state for trial in self.trials)

    def _count(self) -> str:
        counts = self._counts()
        parts = [f"{counts[State.FINISHED]}/{self.total} finished"]
        shown = (State.RUNNING, State.PRUNED, State.FAILED, State.STOPPED, State.WAITING)
        return ", ".join([*parts, *(f"{counts[state]} {state}" for state in shown if counts[state])])

    def _picture(self, width: int) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        for trial, started in self._running[:SHOWN]:
            table.add_row(Text(trial.label), Text(how_far(trial, started)))
        if len(self._running) > SHOWN:
            table.add_row(Text(f"and {len(self._running) - SHOWN} more"), Text(""))
        table.add_row(Text(self._count(), style="bold"), Text(f"{time.monotonic() - self._started:.0f} s"))
        return table


def how_far(trial: Trial, started: float) -> str:
    """Epoch, loss and seconds of a running trial, from the last row of its record."""
    parts = []
    row = last_row(trial.path / "metrics.jsonl")
    if "epoch" in row:
        parts.append(f"epoch {row['epoch']:.3g}/{trial.epochs}")
    if isinstance(loss := number(row.get("train/loss", row.get("eval/loss"))), float):
        parts.append(f"loss {loss:.4g}")
    return "  ".join([*parts, f"{time.monotonic() - started:.0f} s"])


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
