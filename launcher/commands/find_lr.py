"""A learning rate range test: a short run whose learning rate grows with each update, and what its losses say.

    launcher find-lr optimizer=sgd model=cnn
    torchrun --nproc_per_node 2 -m launcher find-lr find_lr.max=1

Smith 2015, "Cyclical learning rates for training neural networks", https://arxiv.org/abs/1506.01186.
"""

import csv
import logging
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import launcher
from launcher.config import composition
from launcher.config.command_line import parse_arguments, show
from launcher.config.composed import Composed
from launcher.core.errors import ConfigError
from launcher.core.files import replacing, write_json
from launcher.distributed import watchdog
from launcher.run import curves
from launcher.train import train

log = logging.getLogger("launcher")

GROWTH = 4.0  # times the smallest smoothed loss at which a sweep ends
MEMORY = 0.9  # of the smoothed loss: the share that it keeps of itself


class Enough(Exception):
    """A sweep is through, or its loss has grown so much that it tells no more."""


class Sweep:
    """Watches the losses of a sweep, the same on every rank, and ends it, at the latest after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.directory = Path()  # of the run, once it has a loss
        self._losses: list[float] = []

    def __call__(self, directory: Path, step: int, figures: Mapping[str, float]) -> None:
        """Take a row of the record; raises Enough where the sweep is over."""
        self.directory = directory
        if "train/loss" in figures:  # not where a gradient scaler left the step out
            self._losses.append(figures["train/loss"])
        smoothed = smooth(self._losses)
        if step >= self.steps or (smoothed and smoothed[-1] > GROWTH * min(smoothed)):
            raise Enough


def command(argv: list[str]) -> int:
    """Sweep once, as a training run of its own, and write lr_range.json, .csv and .png into its run directory."""
    arguments = parse_arguments(argv)
    if show(arguments, "find_lr"):
        return 0
    if arguments.multirun:
        raise ConfigError("-m: a range test is one run. Name one value for each setting.")
    with composition.opened(arguments, "find_lr") as (hydra, name):
        composed = composition.compose(hydra, name, arguments.overrides, "find_lr")
    settings = composed.plain()
    wanted = settings.pop("find_lr")
    low, high, steps = wanted["min"], wanted["max"], wanted["steps"]
    if not low < high:
        raise ConfigError(f"find_lr.min={low:g} must be smaller than find_lr.max={high:g}.")
    factor = (high / low) ** (1 / (steps - 1))
    sweep = Sweep(steps)
    os.environ["TERM"] = "dumb"  # no bar, which the exception at the end of a sweep would leave half drawn
    from launcher.training.divergence import Diverged

    try:
        train(composed.having(_swept(settings, low, factor, steps)), sweep)
        return 0  # stopped on request, and it has said so
    except (Enough, Diverged):  # on every rank at the same step
        watchdog.finish(watchdog.current)
    if os.environ.get("RANK", "0") == "0":
        _report(sweep.directory, composed, low, factor)
    return 0


def _swept(settings: dict[str, Any], low: float, factor: float, steps: int) -> dict[str, Any]:
    """The training run's settings with the schedule of a sweep, and without what a sweep does not need."""
    optimizer = dict(settings["optimizer"])
    if optimizer.get("adamw_lr"):  # Muon's second rate keeps its ratio to the first
        optimizer["adamw_lr"] *= low / optimizer["lr"]
    # As the rates of groups of their own do.
    own = [g if g.get("lr") is None else g | {"lr": g["lr"] * low / optimizer["lr"]} for g in settings["param_groups"]]
    return settings | {
        "optimizer": optimizer | {"lr": low}, "param_groups": own,
        "hooks": [],
        "scheduler": {
            "_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": factor, "interval": "step", "warmup": 0
        },
        "epochs": steps, "max_steps": steps, "log_every": 1, "eval_every": None, "ema_decay": None,
        "early_stopping": settings["early_stopping"] | {"metric": None},
        "checkpoint": settings["checkpoint"] | {"every": None, "best": None},
        "divergence": settings["divergence"] | {"action": "stop"},
        "wandb": settings["wandb"] | {"mode": "disabled"},
    }  # fmt: skip


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponential moving average of the losses so far, without the bias of its start (Kingma and Ba 2014)."""
    smoothed, average = [], 0.0
    for count, loss in enumerate(losses, start=1):
        average = MEMORY * average + (1 - MEMORY) * loss
        smoothed.append(average / (1 - MEMORY**count))
    return smoothed


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate; None where it does not.

    The first tenth of the losses, an average over little, does not count.
    """
    import numpy as np

    begin, end = len(rates) // 10, int(np.argmin(smoothed)) + 1
    if end - begin < 2:
        return None
    slopes = np.gradient(np.asarray(smoothed), np.log(rates))[begin:end]
    return rates[begin + int(np.argmin(slopes))] if slopes.min() < 0 else None


def _report(directory: Path, composed: Composed, low: float, factor: float) -> None:
    """Write what the sweep found, and say it."""
    from launcher.run.command_line import config_options, launch_words
    from launcher.run.record import Record

    rows = [row for row in Record(directory / "metrics.jsonl").rows() if math.isfinite(row.get("train/loss", math.nan))]
    if not rows:
        raise ConfigError(f"find_lr.min={low:g}: the loss is not finite at the smallest learning rate already.")
    rates = [low * factor ** (row["step"] - 1) for row in rows]
    losses = [row["train/loss"] for row in rows]
    smoothed = smooth(losses)
    found = suggest(rates, smoothed)
    best = rates[smoothed.index(min(smoothed))]
    columns = {"optimizer.lr": rates, "loss": losses, "smoothed": smoothed}
    write_json(directory / "lr_range.json", {"suggestion": found, "smallest_loss_at": best, **columns})
    with replacing(directory / "lr_range.csv", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    _draw(directory / "lr_range.png", rates, losses, smoothed, found)
    span = f"optimizer.lr from {rates[0]:.3g} at step 1 to {rates[-1]:.3g} at step {rows[-1]['step']}"
    log.info("sweep      %s, see %s", span, directory / "lr_range.png")
    if found is None:
        log.info(
            "suggestion none: the loss did not fall. Widen find_lr.min and find_lr.max, or give more find_lr.steps."
        )
        return
    log.info("suggestion optimizer.lr=%.3g, where the loss falls most steeply; it is smallest at %.3g", found, best)
    launcher.command = "train"
    kept = [
        o for o in composed.overrides if not o.lstrip("+").startswith(("find_lr.", "hydra.run.dir=", "optimizer.lr="))
    ]
    log.info("  %s", shlex.join([*launch_words(), *config_options(sys.argv[1:]), *kept, f"optimizer.lr={found:.3g}"]))


def _draw(
    path: Path, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], found: float | None
) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(curves.style("#24292f")):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel="optimizer.lr", ylabel="loss")
        axes.plot(rates, losses, linewidth=0.8, alpha=0.4, label="each update")
        axes.plot(rates, smoothed, linewidth=1.8, label="smoothed")
        if found is not None:
            axes.axvline(found, linestyle=":", color="#cf222e", label=f"steepest: {found:.3g}")
        axes.set_ylim(top=min(max(losses), GROWTH * max(losses[0], min(smoothed))))
        axes.grid()
        axes.legend()
        with replacing(path, "wb") as file:
            figure.savefig(file, dpi=130)
