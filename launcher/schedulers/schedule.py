"""Schedules: a torch scheduler behind an optional warmup, counted in optimizer updates or in epochs."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.config.components import accepted_names, build, locate
from launcher.config.direction import direction
from launcher.core.errors import ConfigError

if TYPE_CHECKING:  # what is checked before a run must not wait for torch
    from torch.optim import Optimizer

# Arguments that are a length. Null is filled with what remains after warmup; StepLR's with a third of it.
LENGTHS = ("T_max", "total_iters", "total_steps", "step_size")
WARMUP = re.compile(r"\s*(?:(\d+(?:\.\d*)?)\s*epoch|(\d+(?:\.0*)?)\s*step)s?\s*")  # epochs, or whole steps


@dataclass(eq=False)
class Schedule:
    """Learning rate of each optimizer update t = 0, 1, ...

    During warmup, of w updates, lr(t) = lr_main(0) * (t + 1) / (w + 1). From t = w on, the main scheduler
    decides: its clock is t - w by step, (t - w) // steps_per_epoch by epoch, and the evaluations where it
    observes a metric. A step costs 0.2 us, and by step the 2 to 3 us of the torch scheduler's own.
    Build it before the optimizer's state is restored, as torch's schedulers must be.
    """

    optimizer: "Optimizer"  # the learning rates in its groups are set
    main: Any  # a torch scheduler of that optimizer, freshly built
    warmup: int  # updates, >= 0
    period: int  # updates from one step of `main` to the next; 0 for one that observes a metric
    metric: str | None  # name of the recorded metric that `observe` is to be given after each evaluation
    updates: int = field(default=0, init=False)  # done

    def __post_init__(self) -> None:
        self._peaks: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        if self.warmup:
            self._warm_up()

    @property
    def lr(self) -> float:
        """Learning rate of the first group for the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Go to the next update; to be called after each optimizer update."""
        self.updates += 1
        clock = self.updates - self.warmup
        if clock <= 0:
            self._warm_up()
        elif self.period and clock % self.period == 0:
            self.main.step()

    def observe(self, value: float) -> None:
        """Give the metric of an evaluation to a scheduler that acts on it; in warmup it does not count."""
        if self.updates >= self.warmup:
            self.main.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Plain state: numbers, strings, lists and dicts."""
        return {
            "updates": self.updates,
            "peaks": list(self._peaks),
            "lrs": [group["lr"] for group in self.optimizer.param_groups],
            "main": self.main.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, the optimizer's learning rates included; before or after the optimizer's own."""
        groups = self.optimizer.param_groups
        if len(state["lrs"]) != len(groups):
            raise ConfigError(
                f"scheduler: the checkpoint has {len(state['lrs'])} parameter groups, this optimizer has {len(groups)}."
            )
        self.updates = state["updates"]
        self._peaks = list(state["peaks"])
        self.main.load_state_dict(state["main"])
        for group, lr in zip(groups, state["lrs"], strict=True):
            group["lr"] = lr

    def _warm_up(self) -> None:
        share = (self.updates + 1) / (self.warmup + 1)  # exactly 1 at the end
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share


def depends_on_length(settings: Mapping[str, Any]) -> bool:
    """Whether a longer run would have other learning rates from its start (so it cannot be prolonged)."""
    warmup = settings.get("warmup")
    if isinstance(warmup, float) and warmup > 0:
        return True
    target = str(settings.get("_target_"))
    if target.endswith(".ConstantLR") and settings.get("factor") == 1:
        return False
    names = accepted_names(locate(target, "scheduler")) or set()
    return any(key in names and settings.get(key) is None for key in LENGTHS)


def build_schedule(
    settings: Mapping[str, Any], optimizer: "Optimizer", total_steps: int, steps_per_epoch: int
) -> Schedule:
    """Build the schedule that conf/scheduler describes.

    Lengths that are null are filled in: T_max, total_iters and total_steps with what remains of the run after
    warmup, step_size with a third of it, in units of `interval`; max_lr with the optimizer's rate.

    Args:
        settings: `_target_` and the constructor's arguments, and the launcher's own `interval` (step or
            epoch), `warmup` (see `parse_warmup`) and `metric` (of a scheduler that observes one).
        optimizer: A torch optimizer, not one wrapped by Accelerate.
        total_steps: Updates of the run, > 0.
        steps_per_epoch: Updates of an epoch, > 0.

    Raises:
        ConfigError: A setting is wrong, or does not fit the run's length.
    """
    from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

    fixed = dict(settings)
    interval, metric = fixed.pop("interval", None), fixed.pop("metric", None)
    if interval not in ("step", "epoch"):
        raise ConfigError(f"scheduler.interval is {interval!r}: it must be step or epoch.")
    warmup = parse_warmup(fixed.pop("warmup", None), total_steps, steps_per_epoch)
    period = 1 if interval == "step" else steps_per_epoch
    length = max(1, math.ceil((total_steps - warmup) / period))

    _check_lengths(fixed, interval, length)
    lrs = [group["lr"] for group in optimizer.param_groups]
    facts = {key: length for key in LENGTHS} | {
        "step_size": -(-length // 3),
        "max_lr": lrs[0] if len(set(lrs)) == 1 else lrs,
    }
    try:
        main = build("scheduler", fixed, optimizer, **facts)
    except (ZeroDivisionError, KeyError) as error:
        raise ConfigError(f"scheduler: {fixed['_target_']} cannot be built from these settings: {error!r}.") from error
    if not all(callable(getattr(main, name, None)) for name in ("step", "state_dict", "load_state_dict")):
        raise ConfigError(
            f"scheduler._target_: {fixed['_target_']!r} gives a {type(main).__name__}, which is no "
            "learning rate scheduler: it needs step(), state_dict() and load_state_dict()."
        )
    if isinstance(main, OneCycleLR) and not fixed.get("pct_start", 0.3) < 1:
        raise ConfigError(f"scheduler.pct_start is {fixed['pct_start']}: it must be below 1, or the rate never falls.")
    if not isinstance(main, ReduceLROnPlateau):
        return Schedule(optimizer, main, warmup, period, metric=None)

    _check_plateau(main, interval, metric)
    return Schedule(optimizer, main, warmup, 0, metric)


def parse_warmup(text: int | float | str | None, total_steps: int, steps_per_epoch: int) -> int:
    """Optimizer updates that a warmup takes: at least 0 and fewer than total_steps.

    Args:
        text: Updates (5), a share of the run in (0, 1) (0.05), "2epochs", "0.5epochs", "100steps", None (0).
        total_steps: Updates of the run.
        steps_per_epoch: Updates of an epoch.

    Raises:
        ConfigError: It is none of these, or not shorter than the run.
    """
    steps: float = -1
    if text is None:
        steps = 0
    elif isinstance(text, str) and (match := WARMUP.fullmatch(text)):
        steps = float(match[1]) * steps_per_epoch if match[1] else float(match[2])
    elif isinstance(text, int) and not isinstance(text, bool):
        steps = text
    elif isinstance(text, float) and 0 <= text < 1:
        steps = text * total_steps
    if steps < 0:
        right = "give updates (500), a share of the run (0.05), epochs (2epochs) or steps (100steps)"
        raise ConfigError(f"scheduler.warmup is {text!r}: {right}.")
    warmup = round(steps)
    if 0 < total_steps <= warmup:
        raise ConfigError(
            f"scheduler.warmup is {text!r}, {warmup} updates, and the whole run has {total_steps}: "
            "give a shorter warmup or a longer run."
        )
    return warmup


def _check_lengths(fixed: dict[str, Any], interval: str, length: int) -> None:
    """Check that given lengths are whole numbers, which they become where they are floats, and fit the run's."""
    for key in LENGTHS:
        given = fixed.get(key)
        if given is None:
            continue
        if isinstance(given, float) and given.is_integer():
            given = fixed[key] = int(given)
        if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
            raise ConfigError(f"scheduler.{key} is {given!r}: give a whole number of {interval}s > 0, or null.")
        if key == "total_steps" and given < length:
            raise ConfigError(
                f"scheduler.total_steps is {given}, but the run has {length} {interval}s after warmup: "
                f"give at least {length}, or null."
            )


def _check_plateau(main: Any, interval: str, metric: Any) -> None:
    """Check what a scheduler that observes a metric needs."""
    if interval != "epoch":
        raise ConfigError("scheduler.interval is step, but plateau acts on evaluations: set scheduler.interval=epoch.")
    if not isinstance(metric, str) or not metric:
        raise ConfigError(f"scheduler.metric is {metric!r}: name a recorded metric, such as eval/loss.")
    mode = direction(metric)
    if mode not in (None, main.mode):
        raise ConfigError(
            f"scheduler.mode is {main.mode}, which takes {metric} the wrong way: set scheduler.mode={mode}."
        )
