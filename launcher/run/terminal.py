"""What a person sees while a run goes on: a bar on a terminal, now and then a line anywhere else."""

import io
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

REFRESH = 0.2  # seconds between two pictures of the bar; drawing one takes 0.3 ms (measured)
ENDLESS = 10**12  # updates from which a run has no end, such as one that check=true stops: its total says nothing
QUIET = 10.0  # seconds between two plain lines: a SLURM log is read later, by people


class Progress:
    """The progress of one run on standard output: on a terminal a bar, with log messages above it.

    On a pipe, in a file and with TERM=dumb plain lines: the first row, one every 10 s, each evaluation, and the last.

    Args:
        total_steps: Optimizer updates of the whole run.
        start_step: Updates done before this start of it.
        steps_per_epoch: Updates in an epoch.
    """

    def __init__(self, total_steps: int, start_step: int, steps_per_epoch: int) -> None:
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.row: dict[str, Any] = {"step": start_step}
        self._evaluated: dict[str, Any] = {}
        self._since: tuple[float, int] | None = None  # the first update: what came before was no steady state
        self._shown = -math.inf
        self._live: Any = None
        self._swapped: list[tuple[logging.StreamHandler, Any]] = []
        if _is_terminal(sys.stdout):
            self._start_bar()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show a row of metrics.jsonl with that of timings.jsonl; between two pictures in 1 microsecond (measured)."""
        now = time.monotonic()
        self.row = dict(row)
        self._since = self._since or (now, row["step"])
        evaluated = {name: value for name, value in row.items() if name.startswith(("eval/", "test/"))}
        self._evaluated = evaluated or self._evaluated
        last = row["step"] >= self.total_steps
        if now - self._shown < (REFRESH if self._live else QUIET) and not (evaluated or last):
            return
        self._shown = now
        if self._live:
            self._live.refresh()
        else:
            print("  ".join(text for _, text in self._parts(evaluated)), flush=True)

    def close(self) -> None:
        """Leave the bar as it stands, and give the log its stream back."""
        for handler, stream in self._swapped:
            handler.setStream(stream)
        self._swapped.clear()
        if self._live:
            self._live.stop()
            self._live = None

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=sys.stdout)
        # Drawn by update alone: a thread of rich's would take the interpreter lock from the training loop.
        self._live = Live(console=console, auto_refresh=False, get_renderable=lambda: self._bar(console.width))
        self._live.start()
        # A handler writes to the stream that it was made with, past rich: its lines would tear the bar apart.
        for logger in (logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))):
            for handler in logger.handlers:
                if type(handler) is logging.StreamHandler and _is_terminal(handler.stream):
                    self._swapped.append((handler, handler.stream))
                    handler.setStream(_Above(console))

    def _bar(self, width: int) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = min(24, width // 8)
        parts = self._parts(self._evaluated)
        while len(parts) > 1 and sum(len(text) + 2 for _, text in parts) > width - bar:
            parts.remove(max(parts))  # the least important
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=bar)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        progress = ProgressBar(total=max(self.total_steps, 1), completed=self.row["step"], width=bar)
        grid.add_row(progress, Text("  ".join(text for _, text in parts)))
        return grid

    def _parts(self, evaluated: Mapping[str, Any]) -> list[tuple[int, str]]:
        """What there is to say, in the order of reading, each with its rank: 0 is the most important."""
        step, row = self.row["step"], self.row
        epoch, epochs = row.get("epoch", step / self.steps_per_epoch), self.total_steps / self.steps_per_epoch
        total = f"/{self.total_steps}" if self.total_steps < ENDLESS else ""
        parts = [(0, f"step {step}{total}"), (3, f"epoch {epoch:.2f}/{epochs:.4g}")]
        if "train/loss" in row:
            parts.append((2, f"loss {_figure(row['train/loss'])}"))
        if "lr" in row:
            parts.append((5, f"lr {_figure(row['lr'])}"))
        if rate := _rate(row):
            parts.append((4, rate))
        if left := self._left():
            parts.append((1, f"{left} left"))
        parts += [(6 + n, f"{name} {_figure(value)}") for n, (name, value) in enumerate(evaluated.items())]
        return parts

    def _left(self) -> str | None:
        if self._since is None or self.row["step"] <= self._since[1] or self.row["step"] >= self.total_steps:
            return None
        seconds, steps = time.monotonic() - self._since[0], self.row["step"] - self._since[1]
        return _clock(seconds / steps * (self.total_steps - self.row["step"]))


class _Above(io.TextIOBase):
    """A stream for a log handler: whole lines, printed above the bar as they are."""

    def __init__(self, console: Any) -> None:
        self._console = console

    def write(self, text: str) -> int:
        if line := text.rstrip("\n"):
            self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
        return len(text)


def headings_of(summary: Mapping[str, Any]) -> tuple[str, str]:
    """What stands above the metrics of the last model and those of the best one: their steps."""
    steps = (("final", summary.get("step")), ("best", summary.get("best_step")))
    last, best = (name if step is None else f"{name} (step {step})" for name, step in steps)
    return last, best


def final_table(summary: Mapping[str, Any]) -> None:
    """Print the end of a run, as summary.json has it: final and best metrics, and what it took."""
    final, best = summary.get("final") or {}, summary.get("best") or {}
    headings = ("metric", *headings_of(summary))
    rows = [(name, _figure(final.get(name)), _figure(best.get(name))) for name in {**final, **best}]
    notes = [str(summary.get("status", "ended")), f"step {summary.get('step', '?')}"]
    if "epoch" in summary:
        notes.append(f"epoch {summary['epoch']:.4g}")
    if rate := _rate(summary):
        notes.append(rate)
    if summary.get("peak_memory_mb") is not None:
        notes.append(f"{summary['peak_memory_mb']:,.0f} MB at most")
    if "world_size" in summary:
        notes.append(f"{summary['world_size']} process{'es' if summary['world_size'] > 1 else ''}")
    caption = ", ".join(notes)
    shares = summary.get("time_shares") or {}
    if parts := [f"{share:.0%} {name.replace('_', ' ')}" for name, share in shares.items() if share >= 0.005]:
        caption += "\ntime: " + ", ".join(parts)
    if _is_terminal(sys.stdout):
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "metric" else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console = Console(file=sys.stdout)
        if rows:
            console.print(table)
        console.print(Text(caption))
        return
    rows = [headings, *rows] if rows else []
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for name, end, top in rows:
        print(f"{name:<{widths[0]}}  {end:>{widths[1]}}  {top:>{widths[2]}}".rstrip())
    print(caption, flush=True)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    except (AttributeError, ValueError):  # no stream at all (pythonw), or a closed one
        return False


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rate(row: Mapping[str, Any]) -> str | None:
    for what in ("tokens", "samples"):
        if isinstance(rate := row.get(f"{what}_per_second"), int | float):
            return f"{_short(rate)} {what}/s"
    return None


def _short(value: float) -> str:
    """A rate in four characters or so: 87.2, 3.1k, 12M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02}:{seconds:02}"
