"""Options of conf/scheduler, and the learning rates that they give."""

import math
from pathlib import Path

import options
import pytest
import torch
from omegaconf import OmegaConf

from launcher.schedulers.schedule import build_schedule

CONF = Path(__file__).parents[2] / "conf" / "scheduler"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
LR, RUN, EPOCH = 0.4, 30, 4  # learning rate, updates of the run, updates of an epoch


def option(name: str, **changes):
    return OmegaConf.create(options.option("scheduler", name, **changes))


def sgd(lrs=(LR,), momentum: float = 0.9) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=lrs[0], momentum=momentum)


def update(optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = p.detach() - 0.3
    optimizer.step()


def series(settings, run: int = RUN, metrics=(), lrs=(LR,)) -> list[float]:
    """The learning rate of each update; `metrics` are observed at the ends of epochs."""
    optimizer = sgd(lrs)
    schedule = build_schedule(settings, optimizer, run, EPOCH)
    taken, observed = [], iter(metrics)
    for t in range(run):
        taken.append(schedule.lr)
        assert [g["lr"] / lr for g, lr in zip(optimizer.param_groups, lrs, strict=True)] == pytest.approx(
            [schedule.lr / lrs[0]] * len(lrs)
        )
        update(optimizer)
        schedule.step()
        if schedule.metric is not None and (t + 1) % EPOCH == 0:
            schedule.observe(next(observed))
    return taken


def one_cycle_rate(k: int, length: int, pct: float = 0.3) -> float:
    """Smith and Topin's cycle with cosine ramps, as fastai and torch take it."""
    low, peak, end, last = LR / 25, pct * length - 1, LR / 25 / 1e4, length - 1
    if k <= peak:
        return LR + (low - LR) * (1 + math.cos(math.pi * k / peak)) / 2
    return end + (LR - end) * (1 + math.cos(math.pi * (k - peak) / (last - peak))) / 2


# Rate at clock k of a main schedule that is `length` long.
CLOSED = {
    "constant": lambda k, length: LR,
    "step": lambda k, length: LR * 0.1 ** (k // math.ceil(length / 3)),
    "cosine": lambda k, length: LR * (1 + math.cos(math.pi * k / length)) / 2,
    "linear": lambda k, length: LR * (1 - k / length),
    "one_cycle": one_cycle_rate,
}


class Halving(torch.optim.lr_scheduler.LRScheduler):
    """A user's own, recursive, that asks for the run's length."""

    def __init__(self, optimizer, total_steps, every):
        self.total_steps, self.every = total_steps, every
        super().__init__(optimizer)

    def get_lr(self):
        factor = 0.5 if self.last_epoch > 0 and self.last_epoch % self.every == 0 else 1.0
        return [group["lr"] * factor for group in self.optimizer.param_groups]


OWN = {"_target_": f"{__name__}.Halving", "every": 3, "interval": "step", "warmup": 4}
