"""The experiments of docs/concepts: sweeps of the launcher, a table and a picture of each.

    python benchmarks/experiments.py learning_rate
    python benchmarks/experiments.py learning_rate epochs=5

Runs stay in outputs/experiments; a second start draws from what is there. Overrides after the name apply to each sweep;
their runs and picture go to a directory of their own. Everything runs on CPU with one thread a trial, so that figures
can be repeated.
"""

import argparse
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.run.record import Record  # noqa: E402
from launcher.sweep.comparison import Entry, read_sweep  # noqa: E402

COMMON = ("seed=0,1,2", "device=cpu", "threads=1", "trackers=[]", "checkpoint.every=null")
# Okabe and Ito (2008): told apart by every kind of colour vision. Without their yellow, orange and sky a little darker,
# so that words in them can be read on white.
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY, BLACK = "#C98600", "#3D9BD1", "#6e7781", "#24292f"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Setting:
    """One row of a table: runs that differ in nothing but their seed.

    Attributes:
        grid: Name of its grid.
        values: Of what varies in that grid, the seed aside, by the name of the setting.
        runs: Its finished runs.
        failed: How many did not finish.
    """

    grid: str
    values: Mapping[str, str]
    runs: Sequence[Entry]
    failed: int

    @property
    def label(self) -> str:
        return " ".join([*([self.grid] if self.grid else []), *self.values.values()])

    def __getitem__(self, name: str) -> float:
        """A setting that varies, as a number."""
        return float(self.values[name])

    def figures(self, measure: Callable[[Entry], float]) -> list[float]:
        """What was measured, run by run."""
        return [measure(run) for run in self.runs]


@dataclass(frozen=True)
class Experiment:
    """Sweeps, and what is made of them.

    Attributes:
        grids: Name -> overrides of one `launcher/train.py -m`.
        head: Heading of the table's first column.
        columns: Heading -> (what is measured of a run, decimals).
        draw: Draws the settings into an empty figure.
        size: Of the picture, inches.
        across: A setting whose values are the table's columns, in place of several measures.
    """

    grids: Mapping[str, Sequence[str]]
    head: str
    columns: Mapping[str, tuple[Callable[[Entry], float], int]]
    draw: Callable[[Any, Sequence[Setting]], None]
    size: tuple[float, float] = (8.4, 3.4)
    across: str | None = None


# --- What is measured of a run -------------------------------------------------------------------------------------


def final(name: str, factor: float = 1.0) -> Callable[[Entry], float]:
    """A figure of the run's end; NaN where it has none."""
    return lambda run: factor * float((run.summary.get("final") or {}).get(name, math.nan))


def least(name: str) -> Callable[[Entry], float]:
    """The smallest value of a figure over the run."""
    return lambda run: min(curve(run, name)[1], default=math.nan)


def fact(name: str) -> Callable[[Entry], float]:
    """A number of summary.json."""
    return lambda run: float(run.summary[name])


def timing(name: str, reduce: Callable[[Sequence[float]], float]) -> Callable[[Entry], float]:
    """A figure of timings.jsonl, whose rows end before the last save, its first row left out."""

    def measure(run: Entry) -> float:
        rows = [json.loads(line) for line in (run.path / "timings.jsonl").read_text().splitlines()]
        return reduce([float(row[name]) for row in rows[1:]])

    return measure


def classes(first: int, last: int) -> Callable[[Entry], float]:
    """Mean accuracy, percent, of the test samples of classes first .. last - 1; NaN in a regression."""

    def measure(run: Entry) -> float:
        shares = json.loads((run.path / "evaluation.json").read_text())["per_class_accuracy"]
        return 100 * statistics.fmean(shares[first:last]) if shares else math.nan

    return measure


def curve(run: Entry, name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a figure in the run's record."""
    rows = [row for row in Record(run.path / "metrics.jsonl").rows() if name in row]
    return [float(row["epoch"]) for row in rows], [float(row[name]) for row in rows]


def squared_norm(run: Entry) -> float:
    """Mean squared norm of the gradients of a run's full batches (the last of an epoch may be smaller), or NaN."""
    size, plan = int(run.summary["global_batch_size"]), int(run.config["batch.global_size"])
    rows = [row for row in Record(run.path / "metrics.jsonl").rows() if "train/grad_norm" in row]
    whole = [row for row in rows if size < plan or row["epoch"] % 1]  # the end of an epoch: a whole number
    return statistics.fmean(float(row["train/grad_norm"]) ** 2 for row in whole) if whole else math.nan


ACCURACY = ("test accuracy, %", final("test/accuracy", 100), 2)
VALIDATION = ("validation loss", final("eval/loss"), 3)


def columns(*chosen: tuple[str, Callable[[Entry], float], int]) -> dict[str, Any]:
    return {heading: (measure, decimals) for heading, measure, decimals in chosen}


# --- Pictures ------------------------------------------------------------------------------------------------------


def mean_curve(setting: Setting, name: str) -> tuple[list[float], list[float]]:
    """Epochs, and the mean of a figure over the seeds at each."""
    found = [curve(run, name) for run in setting.runs]
    return found[0][0], [statistics.fmean(values) for values in zip(*(own for _, own in found), strict=True)]


def draw_line(
    axes: Any,
    settings: Sequence[Setting],
    name: str,
    measure: Callable[[Entry], float],
    color: str,
    label: str = "",
) -> None:
    """A dot for each run over a setting that is a number, and a line through the means."""
    for setting in settings:
        axes.plot([setting[name]] * len(setting.runs), setting.figures(measure), "o", color=color, alpha=0.45, mew=0)
    drawn = [setting for setting in settings if setting.runs]
    means = [statistics.fmean(setting.figures(measure)) for setting in drawn]
    axes.plot([setting[name] for setting in drawn], means, color=color)
    if label:
        end(axes, drawn[-1][name], means[-1], label, color)


def name_decades(axis: Any) -> None:
    """Plain numbers on a logarithmic axis: 0.1, and where there is room 0.2 and 0.5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def end(axes: Any, x: float, y: float, text: str, color: str, offset: tuple[float, float] = (5, 0)) -> None:
    """Name a line where it ends."""
    axes.annotate(
        text, (x, y), offset, textcoords="offset points", color=color, va="center", annotation_clip=False, fontsize=8.5
    )


def draw_rows(
    axes: Any, settings: Sequence[Setting], measures: Mapping[str, tuple[Callable[[Entry], float], str]]
) -> None:
    """A row for each setting: a dot for each run, a bar at the mean."""
    names = [" ".join(setting.values.values()) or setting.grid for setting in settings]
    for place, setting in enumerate(reversed(settings)):
        for label, (measure, color) in measures.items():
            values = setting.figures(measure)
            apart = [place + 0.2 - 0.4 * number / max(1, len(values) - 1) for number in range(len(values))]
            axes.plot(values, apart, "o", color=color, alpha=0.5, mew=0)
            mean = statistics.fmean(values)
            axes.plot([mean, mean], [place - 0.28, place + 0.28], color=color, linewidth=2.4)
            if place == len(settings) - 1 and len(measures) > 1:
                axes.annotate(
                    label,
                    (mean, place + 0.3),
                    (0, 3),
                    textcoords="offset points",
                    color=color,
                    ha="center",
                    fontsize=8.5,
                )
    axes.margins(x=0.12)
    axes.set_yticks(range(len(names)), names[::-1])
    axes.set_ylim(-0.6, len(names) - 0.4 + 0.35 * (len(measures) > 1))


def of(settings: Sequence[Setting], name: str) -> list[Setting]:
    return [setting for setting in settings if setting.grid == name]


def draw_learning_rate(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2)
    shown = [s for s in settings if s.values["optimizer.lr"] in ("0.001", "0.01", "0.1", "1")]
    for setting, color in zip(shown, (SKY, BLUE, GREEN, RED), strict=False):
        epochs, losses = mean_curve(setting, "train/loss")
        left.plot(epochs, losses, color=color)
        end(left, epochs[-1], losses[-1], setting.values["optimizer.lr"], color)
    left.set(title="Training loss at four learning rates", xlabel="epoch", ylabel="cross-entropy, nats", yscale="log")
    draw_line(right, settings, "optimizer.lr", final("eval/loss"), BLUE)
    right.set(
        title="Where it ends", xlabel="optimizer.lr", ylabel="validation loss, nats", xscale="log", yscale="log"
    )  # fmt: skip


def draw_epochs(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2)
    draw_line(left, of(settings, "digits"), "epochs", final("eval/loss"), BLUE)
    left.set(title="digits: runs of different lengths", xlabel="epochs of the whole run", xscale="log", yscale="log")
    left.set(ylabel="validation loss at the end, nats")
    (whole,) = of(settings, "diabetes")
    for name, color, label in (("train/loss", GREY, "training"), ("eval/loss", RED, "validation")):
        for run in whole.runs:
            right.plot(*curve(run, name), color=color, alpha=0.3, linewidth=0.8)
        epochs, losses = mean_curve(whole, name)
        right.plot(epochs, losses, color=color)
        end(right, epochs[-1], losses[-1], label, color)
    lowest = min(range(len(losses)), key=losses.__getitem__)
    right.plot(epochs[lowest], losses[lowest], "o", color=RED, markersize=7)
    right.annotate(
        f"least: epoch {epochs[lowest]:.0f}", (epochs[lowest], losses[lowest]), (12, -22), textcoords="offset points",
        color=RED, fontsize=8.5,
    )  # fmt: skip
    right.set(title="diabetes: one long run", xlabel="epoch", ylabel="squared error, variances of the target", ylim=0)


def draw_batch_size(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2)
    noise = of(settings, "noise")
    exact = noise[-1].figures(squared_norm)  # the whole training part, seed by seed
    sizes = [setting["batch.global_size"] for setting in noise[:-1]]
    shares = [
        [100 * whole / own for whole, own in zip(exact, setting.figures(squared_norm), strict=True)]
        for setting in noise[:-1]
    ]
    for size, seeds in zip(sizes, shares, strict=True):
        left.plot([size] * len(seeds), seeds, "o", color=BLUE, alpha=0.45, mew=0)
    left.plot(sizes, [statistics.fmean(seeds) for seeds in shares], color=BLUE)
    left.set(title="Small batches point less exactly", xlabel="batch.global_size, samples", xscale="log", ylim=(0, 105))
    left.set(ylabel="share of the squared gradient\nthat is not noise, %")
    for rule, color in (("none", GREY), ("linear", RED), ("sqrt", BLUE)):
        own = [s for s in of(settings, "scaling") if s.values["batch.lr_scaling"] == rule]
        draw_line(right, own, "batch.global_size", final("eval/loss"), color, rule)
    right.set(title="Same epochs, three rules for the rate", xlabel="batch.global_size, samples")
    right.set(ylabel="validation loss, nats", xscale="log", yscale="log")
    for axes, ticks in ((left, sizes), (right, (16, 64, 256, 1024))):
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.minorticks_off()


def draw_optimizer(figure: Any, settings: Sequence[Setting]) -> None:
    names = list(dict.fromkeys(setting.values["optimizer"] for setting in settings))
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flat
    for axes, name in zip(panels, names, strict=False):
        for other in names:
            rows = [s for s in settings if s.values["optimizer"] == other and s.runs]
            means = [statistics.fmean(s.figures(final("eval/loss"))) for s in rows]
            axes.plot([s["optimizer.lr"] for s in rows], means, color=GREY, alpha=0.25, linewidth=0.8)
        own = [s for s in settings if s.values["optimizer"] == name]
        draw_line(axes, own, "optimizer.lr", final("eval/loss"), BLUE)
        axes.set(title=name, xscale="log", yscale="log")
        axes.set_xticks([s["optimizer.lr"] for s in own], [f"{s['optimizer.lr']:g}".replace("0.0", ".0") for s in own])
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)
    for axes in list(figure.axes)[len(names) :]:
        axes.set_axis_off()
        axes.text(0, 0.5, "blue: mean and runs\ngrey: the other\noptimizers", transform=axes.transAxes, color=GREY)
    figure.supxlabel("optimizer.lr", fontsize=9)
    figure.supylabel("validation loss, nats", fontsize=9)


def draw_loss(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    regression = of(settings, "diabetes")
    draw_rows(
        left, [s for s in settings if s not in regression],
        {"5 rarest": (classes(5, 10), RED), "5 largest": (classes(0, 5), BLUE)},
    )  # fmt: skip
    left.set(title="digits, classes 50-fold out of balance", xlabel="test accuracy, %")
    mae, rmse = (final(f"test/{name}", 1 / DEVIATION) for name in ("mae", "rmse"))
    draw_rows(right, regression, {"MAE": (mae, GREEN), "RMSE": (rmse, PINK)})
    right.set(title="diabetes", xlabel="test error, standard deviations")


def draw_schedule(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shades = [GREY, ORANGE, GREEN, BLUE, PINK, SKY, BLACK]
    for setting, color in zip(settings, shades, strict=True):
        dashes = "--" if color == SKY else "-"  # as long as it waits it lies on another
        left.plot(*curve(setting.runs[-1], "lr"), dashes, color=color)
    left.set(title="The rate of each update, seed 2", xlabel="epoch", ylabel="learning rate")
    draw_rows(right, settings, {"": (final("eval/loss"), BLUE)})
    right.set(title="What came of it", xlabel="validation loss at the end, nats", xscale="log")
    for mark, color in zip(reversed(right.get_yticklabels()), shades, strict=True):
        mark.set_color(color)


def draw_regularisation(figure: Any, settings: Sequence[Setting]) -> None:
    axes = figure.subplots()
    draw_rows(axes, settings, {"": (final("test/accuracy", 100), BLUE)})
    axes.axvline(statistics.fmean(settings[0].figures(final("test/accuracy", 100))), color=GREY, linestyle=":")
    axes.set(title="485 training images, 60 epochs", xlabel="test accuracy, %")


def draw_precision(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2)
    draw_rows(left, settings, {"": (timing("memory_mb", max), BLUE)})
    left.set(title="Memory", xlabel="peak of the process, MB, from 400", xlim=(400, 800))
    networks = [setting for setting in settings if setting.grid.startswith("cnn")]
    draw_rows(right, networks, {"": (timing("samples_per_second", statistics.median), RED)})
    right.set(title="Speed", xlabel="samples per second", xlim=0)


def draw_seeds(figure: Any, settings: Sequence[Setting]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_rows(left, settings, {"": (final("test/accuracy", 100), BLUE)})
    left.set(title="The same settings, again and again", xlabel="test accuracy, %")
    counts = list(range(1, 7))
    for name, factor, color, label in (
        ("test/loss", 1, RED, "by test loss"),
        ("test/accuracy", -1, BLUE, "by accuracy"),
    ):
        one, other = (of(settings, grid)[0].figures(final(name, factor)) for grid in ("hidden 256", "hidden 128"))
        shares = [100 * share_below(one, other, n) for n in counts]
        right.plot(counts, shares, "o-", color=color)
        right.annotate(label, (2, shares[1]), (6, -12), textcoords="offset points", color=color, fontsize=8.5)
    right.axhline(50, color=GREY, linestyle=":")
    right.set(title="How often 256 beats 128", xlabel="seeds of each, averaged", ylim=(45, 102))
    right.set(ylabel="share of all comparisons, %")


def share_below(one: Sequence[float], other: Sequence[float], count: int) -> float:
    """Share of the pairs of `count` runs of each whose mean is smaller for the first, all subsets counted."""
    means = [[statistics.fmean(own) for own in itertools.combinations(values, count)] for values in (one, other)]
    below = sum(sum(a < b for b in means[1]) for a in means[0])
    return below / (len(means[0]) * len(means[1]))


# --- The experiments -----------------------------------------------------------------------------------------------

SMALL = (
    *("data.test=0.7", "data.shift=0", "optimizer=adamw", "optimizer.lr=0.003", "optimizer.weight_decay=0"),
    *("scheduler=constant", "epochs=60"),
)
LONG_TAIL = ("experiment=imbalanced", "data.test=0.3")
TABLE = (
    "data=diabetes",
    "data.test=0.3",
    "data.validation=0.3",
    "optimizer=adamw",
    "optimizer.lr=0.003",
    "log_every=4",
)
DEVIATION = 79.148  # of the target in the training split of TABLE
SHORT = ("optimizer.lr=0.2", "epochs=20", "log_every=5")
BIG = ("model.hidden=[4096,4096]", "max_steps=4", "eval_every=null", "log_every=1")
CNN = ("model=cnn", "model.channels=[128,128]", "batch.global_size=1294", "epochs=6", "eval_every=null", "log_every=1")

EXPERIMENTS = {
    "learning_rate": Experiment(
        {"": ("optimizer.lr=0.001,0.003,0.01,0.03,0.1,0.3,1", "scheduler=constant", "epochs=15")},
        "`optimizer.lr`",
        columns(("training loss", final("train/loss"), 3), VALIDATION, ACCURACY),
        draw_learning_rate,
    ),
    "epochs": Experiment(
        {
            "digits": ("epochs=2,5,10,20,40,80",),
            "diabetes": (*TABLE, "loss=mse", "scheduler=constant", "epochs=150"),
            "diabetes, early stopping": (
                *(*TABLE, "loss=mse", "scheduler=constant", "epochs=150"),
                *("early_stopping.metric=eval/loss", "early_stopping.patience=10"),
            ),
        },
        "data, `epochs`",
        columns(
            ("updates", fact("step"), 0),
            ("training loss", final("train/loss"), 3),
            ("validation loss, least", least("eval/loss"), 3),
            ("at the end", final("eval/loss"), 3),
            ("test loss", final("test/loss"), 3),
        ),
        draw_epochs,
    ),
    "batch_size": Experiment(
        {
            "noise": (
                *("batch.global_size=8,32,128,512,2000", "optimizer.lr=1e-20", "optimizer.momentum=0", "data.shift=0"),
                *("log_grad_norm=true", "log_every=1", "eval_every=null", "epochs=2"),
            ),
            "scaling": ("batch.global_size=16,64,256,1024", "batch.lr_scaling=none,linear,sqrt", "epochs=15"),
        },
        "`batch.global_size`, `batch.lr_scaling`",
        columns(
            ("updates", fact("step"), 0),
            ("seconds", fact("training_seconds"), 1),
            ("mean of squared gradient norms", squared_norm, 2),
            VALIDATION,
        ),
        draw_batch_size,
    ),
    "optimizer": Experiment(
        {"": ("optimizer=sgd,adam,adamw,adagrad,rmsprop,lion,muon", "optimizer.lr=0.0001,0.001,0.01,0.1", "epochs=10")},
        "`optimizer`, validation loss at `optimizer.lr`",
        columns(VALIDATION),
        draw_optimizer,
        (8.4, 4.2),
        "optimizer.lr",
    ),
    "loss": Experiment(
        {
            "": (*LONG_TAIL, "loss=cross_entropy,focal,multi_margin"),
            "cross_entropy, weight=balanced": (*LONG_TAIL, "loss=cross_entropy", "loss.weight=balanced"),
            "cross_entropy, sampling=balanced": (*LONG_TAIL, "loss=cross_entropy", "sampling=balanced"),
            "diabetes": (*TABLE, "loss=mse,huber,l1", "epochs=30"),
        },
        "`loss`",
        columns(
            ("5 largest classes, %", classes(0, 5), 1),
            ("5 rarest, %", classes(5, 10), 1),
            ("macro F1", final("test/macro_f1"), 3),
            ("RMSE", final("test/rmse", 1 / DEVIATION), 3),
            ("MAE", final("test/mae", 1 / DEVIATION), 3),
        ),
        draw_loss,
    ),
    "schedule": Experiment(
        {
            "": (*SHORT, "scheduler=constant,step,linear,cosine,one_cycle"),
            "plateau, patience=2": (*SHORT, "scheduler=plateau", "scheduler.patience=2"),
            "cosine, T_max=210": (*SHORT, "scheduler=cosine", "scheduler.T_max=210"),
        },
        "`scheduler`",
        columns(VALIDATION, ACCURACY),
        draw_schedule,
    ),
    "regularisation": Experiment(
        {
            "none": SMALL,
            "weight_decay 0.1": (*(word for word in SMALL if "decay" not in word), "optimizer.weight_decay=0.1"),
            "weight_decay 1": (*(word for word in SMALL if "decay" not in word), "optimizer.weight_decay=1"),
            "dropout 0.5": (*SMALL, "model.dropout=0.5"),
            "label_smoothing 0.1": (*SMALL, "loss.label_smoothing=0.1"),
            "ema_decay 0.98": (*SMALL, "ema_decay=0.98"),
            "mixup.alpha 0.4": (*SMALL, "mixup.alpha=0.4"),
            "data.shift 1": (*(word for word in SMALL if "shift" not in word), "data.shift=1"),
        },
        "what is added",
        columns(("training loss", final("train/loss"), 4), ACCURACY),
        draw_regularisation,
    ),
    "precision": Experiment(
        {
            "mlp, sgd, momentum 0": (*BIG, "optimizer=sgd", "optimizer.momentum=0"),
            "mlp, sgd": (*BIG, "optimizer=sgd"),
            "mlp, adamw": (*BIG, "optimizer=adamw"),
            "mlp, adamw, bf16": (*BIG, "optimizer=adamw", "mixed_precision=bf16"),
            "cnn": CNN,
            "cnn, max_per_device 128": (*CNN, "batch.max_per_device=128"),
            "cnn, checkpointing": (*CNN, "activation_checkpointing=[features]"),
            "cnn, bf16": (*CNN, "mixed_precision=bf16"),
            "cnn, bf16, channels_last": (*CNN, "mixed_precision=bf16", "channels_last=true"),
        },
        "model, settings",
        columns(
            ("peak memory, MB", timing("memory_mb", max), 0),
            ("samples per second", timing("samples_per_second", statistics.median), 0),
            ("training loss", final("train/loss"), 3),
        ),
        draw_precision,
    ),
    "seeds": Experiment(
        {
            "hidden 256": ("seed=0,1,2,3,4,5,6,7,8,9,10,11", "epochs=15"),
            "hidden 128": ("seed=0,1,2,3,4,5,6,7,8,9,10,11", "epochs=15", "model.hidden=[128]"),
            "hidden 256, other splits": ("data.split_seed=0,1,2,3,4,5,6,7,8,9,10,11", "seed=0", "epochs=15"),
        },
        "12 runs of",
        columns(("test loss", final("test/loss"), 3), ACCURACY),
        draw_seeds,
    ),
}  # fmt: skip


def overrides_of(own: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """The overrides of a sweep: those given last take the place of earlier ones of the same name."""
    named = {word.partition("=")[0]: word for word in (*COMMON, *own, *more)}
    groups = [word for word in named.values() if word.partition("=")[0] in ("experiment", "data", "model", "optimizer")]
    return groups + [word for word in named.values() if word not in groups]


def run(name: str, runs: Path, more: Sequence[str] = ()) -> list[Setting]:
    """Run the sweeps of an experiment, as far as their trials have not finished already, and read them."""
    settings: list[Setting] = []
    for title, own in EXPERIMENTS[name].grids.items():
        directory = runs / name / ("".join(c if c.isalnum() else "_" for c in title) or "all")
        command = [sys.executable, str(ROOT / "launcher/train.py"), "-m", *overrides_of(own, more)]
        done = subprocess.run([*command, f"hydra.sweep.dir={directory}"], cwd=ROOT)
        if done.returncode not in (0, 1):  # 1: some trials failed, which the table says
            sys.exit(done.returncode)
        settings += read(title, directory)
    return settings


def read(title: str, directory: Path) -> list[Setting]:
    """The settings of a sweep in the order of their values; a split's seed counts as a seed."""
    found: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in read_sweep(directory, None, None).entries:
        key = tuple((name, value) for name, value in entry.settings.items() if name != "data.split_seed")
        found.setdefault(key, []).append(entry)
    order = list(json.loads((directory / "grid.json").read_text())["points"])
    settings = []
    for key, entries in sorted(found.items(), key=lambda item: min(order.index(entry.name) for entry in item[1])):
        finished = sorted((e for e in entries if e.state == "finished"), key=lambda entry: order.index(entry.name))
        settings.append(Setting(title, dict(key), finished, len(entries) - len(finished)))
    return settings


def table(experiment: Experiment, settings: Sequence[Setting]) -> str:
    """Markdown: mean and standard deviation over the seeds."""
    rows: dict[str, list[str]] = {}
    heads = list(experiment.columns)
    for setting in settings:
        label = setting.label
        if experiment.across is not None:
            heads = list(dict.fromkeys(own.values[experiment.across] for own in settings))
            label = " ".join(value for name, value in setting.values.items() if name != experiment.across)
        cells = [spread(setting.figures(measure), decimals) for measure, decimals in experiment.columns.values()]
        failed = f" ({setting.failed} failed)" if setting.failed else ""
        rows.setdefault(label, []).extend([cells[0] + failed, *cells[1:]])
    lines = [[experiment.head, *heads], ["---"] * (1 + len(heads)), *([label, *cells] for label, cells in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], decimals: int) -> str:
    if not values or any(math.isnan(value) for value in values):
        return "-"
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def draw(experiment: Experiment, settings: Sequence[Setting], path: Path) -> None:
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
    from PIL import Image

    with rc_context(STYLE):
        figure = Figure(figsize=experiment.size, layout="constrained", facecolor="white")
        experiment.draw(figure, settings)
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log" and isinstance(axis.get_major_locator(), LogLocator):
                    name_decades(axis)
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(110)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        picture.quantize(128).save(path, optimize=True)  # a third of the bytes that millions of colours take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("overrides", nargs="*", help="for each sweep, such as epochs=5")
    parser.add_argument("--to", type=Path, help="where runs and picture go")
    arguments = parser.parse_args()
    usual, more = ROOT / "outputs/experiments", arguments.overrides
    runs = (arguments.to or (usual / re.sub(r"[^\w=.-]+", "_", ",".join(more)) if more else usual)).resolve()
    pictures = runs if more or arguments.to else ROOT / "docs/concepts"
    experiment = EXPERIMENTS[arguments.name]
    settings = run(arguments.name, runs, more)
    draw(experiment, settings, pictures / f"{arguments.name}.png")
    print(table(experiment, settings))


if __name__ == "__main__":
    main()
