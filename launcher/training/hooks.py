"""A person's own code beside the training: called after updates, after evaluations and at the end, on every rank."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launcher.batching.generators import generators_kept, seed_generators
from launcher.batching.keys import HOOKS, derive
from launcher.config import components
from launcher.core.errors import ConfigError
from launcher.training import histograms

if TYPE_CHECKING:
    from launcher.data.source import Data
    from launcher.training.progress import Progress
    from launcher.training.trainer import Trainer

log = logging.getLogger("launcher")

METHODS = ("after_step", "after_evaluation", "at_end")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/\w[\w.-]*)*")
PREFIXES = ("train", "eval", "test", "time", "best", "final", "gradients", "parameters")
# Figures of the record, of timings.jsonl and of summary.json, which trackers show by these names.
OWN_NAMES = {
    "step", "epoch", "lr", "loss", "status", "best_step", "samples_seen", "world_size", "global_batch_size", "mfu",
    "per_device_batch_size", "accumulation_steps", "threads", "reason", "steps_per_second", "samples_per_second",
    "tokens_per_second", "training_seconds", "data_wait_seconds", "communication_seconds", "evaluating_seconds",
    "saving_seconds", "time_shares", "peak_memory_mb", "git_commit", "versions", "final", "best", "curves",
    "predictions",
}  # fmt: skip


class HookFailed(RuntimeError):
    """A hook raised something: its message names the hook, the method and the step."""


class Run:
    """What a hook is given of a run, as it is after an update.

    Attributes:
        step: Optimizer updates done.
        epoch: The same in epochs.
        lr: Learning rate of the last update.
        model: The bare model; with strategy=fsdp its parameters are DTensors.
        eval_model: What evaluations measure: the moving average, where there is one, else the model.
        metrics: Of the last evaluation, by their names in the record, such as eval/loss; empty before the first.
        data: The data source, with its splits.
        path: The run directory, in which rank 0 alone may write.
        is_main: Whether this is rank 0.
    """

    def __init__(self, trainer: "Trainer", data: "Data", path: Path) -> None:
        self.step, self.epoch, self.lr = 0, 0.0, trainer.lr
        self.model, self.eval_model = trainer.model, trainer.eval_model
        self.metrics: dict[str, float] = {}
        self.data, self.path, self.is_main = data, path, trainer.ranks.rank == 0
        self.logged: dict[str, Any] = {}  # at this step, as `as_logged` makes it; on rank 0 alone
        self._caller = ""

    def log(self, name: str, value: Any) -> None:
        """Keep a value of this step; that of rank 0 counts, the others' is not looked at.

        Args:
            name: Such as probe/weight_norm; none that the launcher itself writes, and each once a step.
            value: A number, which stands in the step's row of the record; an image, [3, h, w] or [1, h, w] uint8, or
                floats in 0..1 (what lies outside is cut off), or one of PIL; or a tensor [n] with n > 1, of which a
                histogram is kept.

        Raises:
            ConfigError: The name is taken or of another form, or the value is nothing of the kind.
        """
        if hasattr(value, "full_tensor"):  # part of a DTensor is here, and all ranks put it together
            value = value.full_tensor()
        whose = f"hooks: {self._caller} logs {name!r}"
        if not isinstance(name, str) or NAME.fullmatch(name) is None or len(name) > 128:
            raise ConfigError(f"{whose}: a name is up to 128 letters, digits and . _ - in parts between /: probe/norm.")
        if name in OWN_NAMES or ("/" in name and name.partition("/")[0] in PREFIXES):
            raise ConfigError(f"{whose}, a name that the launcher writes itself. Give it a prefix: probe/...")
        if not self.is_main:
            return
        if name in self.logged:
            raise ConfigError(f"{whose} a second time at step {self.step}: a name has one value a step.")
        try:
            self.logged[name] = as_logged(value)
        except TypeError as error:
            raise ConfigError(f"{whose}: {error}") from error


def as_logged(value: Any) -> Any:
    """A value as checkpoints and the record take it.

    Returns:
        A float or int; an image, [h, w] or [h, w, 3] uint8 on the CPU; or a histogram as in histograms.jsonl, empty
        where no element is finite.

    Raises:
        TypeError: It is nothing of the kind.
    """
    if isinstance(value, bool | int | float):
        return float(value) if isinstance(value, float) else int(value)
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # an image of PIL
        import numpy as np

        return torch.from_numpy(np.array(value.convert("L" if len(value.getbands()) == 1 else "RGB")))
    found = value.detach() if isinstance(value, Tensor) else _as_tensor(value)
    if found is not None and not found.is_complex():
        if found.numel() == 1 and found.dim() <= 1:
            return found.item()
        if found.dim() == 3 and found.shape[0] in (1, 3) and (found.is_floating_point() or found.dtype == torch.uint8):
            if found.is_floating_point():
                found = (found.float().nan_to_num(0).clamp(0, 1) * 255).round().byte()
            return found.movedim(0, -1).squeeze(-1).cpu().contiguous()
        if found.dim() == 1:
            return histograms.of_tensors({"": found}).get("", [])
    shown = f"{list(found.shape)} {str(found.dtype)[6:]}" if found is not None else f"a {type(value).__name__}"
    raise TypeError(
        f"its value is {shown}; give a number, an image (PIL, or [3, h, w] or [1, h, w] of uint8 or floats in 0..1), "
        "or a tensor [n] for a histogram."
    )


def _as_tensor(value: Any) -> Tensor | None:
    """An array or number of NumPy as a tensor; None of anything else."""
    import numpy as np

    if not isinstance(value, np.ndarray | np.generic):
        return None
    try:
        return torch.from_numpy(np.array(value))
    except TypeError:  # of texts, or objects
        return None


def name_of(hook: Any) -> str:
    """What a hook is called in messages and checkpoints: its class, in full."""
    return f"{type(hook).__module__}.{type(hook).__qualname__}"


def build_hooks(settings: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Any]:
    """Build the hooks that the setting describes; a constructor gets the facts of the data that it names.

    Raises:
        ConfigError: One cannot be built, or is none.
    """
    hooks = []
    for one in settings:
        with generators_kept():
            hook = components.build("hooks", one, **facts)
        if not any(callable(getattr(hook, method, None)) for method in METHODS):
            raise ConfigError(f"hooks: {one['_target_']} gives a {type(hook).__name__} without any of the methods "
                              f"{', '.join(METHODS)}.")  # fmt: skip
        if hasattr(hook, "state_dict") != hasattr(hook, "load_state_dict"):
            raise ConfigError(f"hooks: {one['_target_']} needs both state_dict and load_state_dict, or neither.")
        hooks.append(hook)
    return hooks


class Hooks:
    """The hooks of a run.

    Each call is outside of autograd, with generators that are seeded by (seed, step, hook) and put back afterwards, and
    with the model's mode put back: what a hook draws changes nothing.

    Args:
        hooks: From `build_hooks`.
        trainer: Whose model they see.
        data: Its splits.
        steps_per_epoch: Updates of an epoch.
        path: The run directory.
    """

    def __init__(self, hooks: list[Any], trainer: "Trainer", data: "Data", steps_per_epoch: int, path: Path) -> None:
        self.hooks, self.trainer, self.steps_per_epoch = hooks, trainer, steps_per_epoch
        self.run = Run(trainer, data, path)
        device = trainer.device
        self._devices = [device.index or 0] if device.type == "cuda" else []  # with generators of their own

    @property
    def logged(self) -> dict[str, Any]:
        """What was logged since the last update, on rank 0."""
        return self.run.logged

    def after_step(self, progress: "Progress") -> None:
        """Call those that want to be after each update."""
        self.run.logged = {}
        self._call("after_step", progress)

    def after_evaluation(self, progress: "Progress", metrics: Mapping[str, float]) -> None:
        """Call those that want to be after an evaluation of the validation split."""
        self.run.metrics = dict(metrics)
        self._call("after_evaluation", progress)

    def at_end(self, progress: "Progress") -> None:
        """Call those that want to be after the last update and its evaluation, before its row is written."""
        self._call("at_end", progress)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them, which is rank 0's: of each its class and state, and what was logged."""
        states = [(name_of(hook), self._state_of(hook)) for hook in self.hooks]
        return {"states": states, "metrics": dict(self.run.metrics), "logged": dict(self.run.logged)}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Put the state of a checkpoint back; a hook whose class is not in it, or less often, starts anew."""
        state = state or {"states": [], "metrics": {}, "logged": {}}
        self.run.metrics = dict(state["metrics"])
        self.run.logged = dict(state["logged"]) if self.run.is_main else {}
        saved = list(state["states"])
        for hook in self.hooks:
            name = name_of(hook)
            place = next((i for i, (known, _) in enumerate(saved) if known == name), None)
            if place is None:
                if self.run.is_main:
                    log.info("hook       %s is new in this run, and starts now", name)
                continue
            _, of_hook = saved.pop(place)
            if of_hook is not None and hasattr(hook, "load_state_dict"):
                self._guarded(hook, "load_state_dict", partial(hook.load_state_dict, of_hook))

    def _call(self, method: str, progress: "Progress") -> None:
        run, model = self.run, self.trainer.model
        run.step, run.epoch, run.lr = progress.step, progress.step / self.steps_per_epoch, self.trainer.lr
        for place, hook in enumerate(self.hooks):
            called = getattr(hook, method, None)
            if called is None:
                continue
            modes = [(one, one.training) for one in dict.fromkeys((model, run.eval_model))]
            with torch.no_grad(), generators_kept(self._devices):
                key = derive(self.trainer.settings.seed, HOOKS, progress.step, place, METHODS.index(method))
                seed_generators(key >> 1)
                self._guarded(hook, method, partial(called, run))
            for one, training in modes:
                if one.training != training:
                    one.train(training)

    def _guarded(self, hook: Any, method: str, called: Callable[[], Any]) -> Any:
        """What a method of a hook returns.

        Raises:
            HookFailed: From what it raises.
            ConfigError: It logs what cannot be logged.
        """
        self.run._caller = f"{name_of(hook)}.{method}"
        try:
            return called()
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # which would end one rank, and say nothing
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise HookFailed(f"hooks: {self.run._caller} raised at step {self.run.step}: {what}") from error

    def _state_of(self, hook: Any) -> Any:
        """The state of a hook, a copy; None where it has none."""
        if not hasattr(hook, "state_dict"):
            return None
        found = self._guarded(hook, "state_dict", hook.state_dict)
        try:
            return _copied(found)
        except TypeError as error:
            raise ConfigError(
                f"hooks: {name_of(hook)}.state_dict holds {error}, which a checkpoint does not take. Use numbers, "
                "texts, None, lists, tuples, dicts and tensors."
            ) from error


def _copied(value: Any) -> Any:
    """A copy of plain values and tensors, whole ones on the CPU; a TypeError names what is neither."""
    if isinstance(value, Tensor):
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        return whole.detach().clone().cpu()
    if isinstance(value, Mapping):
        return {_copied(key): _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(one) for one in value] if isinstance(value, list) else tuple(_copied(one) for one in value)
    for kind in (bool, int, float, str):  # those of NumPy too, that are floats and no plain ones
        if isinstance(value, kind):
            return kind(value)
    if value is not None:
        raise TypeError(f"a {type(value).__module__}.{type(value).__name__}")
    return None
