"""A task tried on a few samples before a run; one of a model(inputs) and loss(outputs, targets) by tryout.py."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from launcher.batching.generators import generators_kept
from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream, in_order
from launcher.core.compat import tree_map_only
from launcher.core.errors import ConfigError
from launcher.data.source import Data
from launcher.tasks.supervised import Supervised
from launcher.tasks.task import Losses, Task
from launcher.training.modes import modes_kept
from launcher.training.tryout import CPU, FEW, How, copy_for_worker, explained, is_large, shapes_of, try_out

Seen = tuple[Any, Any]  # what a task measures of some samples beside the losses, and their targets


def try_task(model: nn.Module, task: Task, data: Data, kind: Callable[..., Stream], how: How) -> Seen | None:
    """Try some training samples, and some of each split that is measured.

    What looks strange is added to the data's notes. A supervised task learns what the outputs of the model are like.

    Returns:
        Of a task with losses of its own, what it measures of a few samples, and their targets; None: it was not tried.

    Raises:
        ConfigError: Something does not fit.
    """
    if isinstance(task, Supervised):
        task.outputs = try_out(model, task.loss, data, task.outputs, kind, how)
    if type(task).losses is not Supervised.losses and not how.shapes and not is_large(model):
        with modes_kept(model), generators_kept():
            return _try_own(copy.deepcopy(model), copy.deepcopy(task), data, kind, how)
    return None


def _try_own(model: nn.Module, task: Task, data: Data, kind: Callable[..., Stream], how: How) -> Seen:
    """Try a task with losses of its own, on copies of the model and of itself."""
    splits = {name: copy_for_worker(split, how.workers, name) for name, split in data.splits().items()}
    few, words = min(FEW, len(splits["train"])), f"task: {type(task).__name__}"
    stream = kind(splits["train"], plan_batch(len(splits["train"]), few, 1, None), 0, 0, CPU, 0)
    with explained("data: the first samples of the train split cannot be read"):
        micro = next(stream.batches(0, 1)).micros[0]
    with explained(f"{words} fails on inputs {shapes_of(micro.inputs)} and targets {shapes_of(micro.targets)}"):
        losses = task.losses(model, micro.inputs, micro.targets)
    _check_losses(words, task, losses, few)
    if not losses.values.requires_grad and any(one.requires_grad for one in model.parameters()):
        raise ConfigError(f"{words}: its losses have no gradient; something in it is detached from the model.")
    model.eval()
    task.eval()
    alone = getattr(micro.targets, "targets", micro.targets)  # of mixed samples
    if how.cut is not None and not task.may_be_cut and _depends_on_others(task, model, micro.inputs, alone):
        raise ConfigError(
            f"{words}: the loss of a sample depends on which others are in its batch, and {how.cut} cuts the global "
            "batch: the result would depend on that. Let one device see all of the batch at once, or say "
            "`may_be_cut = True` in the class."
        )
    for name in ("validation", "test"):
        samples = min(few, len(splits[name]))
        with explained(f"data: the first samples of the {name} split cannot be read"):
            inputs, targets = next(in_order(splits[name], 0, 1, samples, CPU, 0))
        with explained(f"{words}: samples of the {name} split cannot be measured"), torch.no_grad():
            losses, seen = task.measure(model, inputs, targets)
            _check_losses(words, task, losses, samples)
            sums = task.sums(CPU)
            if seen is not None:
                sums.update(seen, targets)
            sums.figures()
    return seen, targets


def _check_losses(words: str, task: Task, losses: Any, samples: int) -> None:
    """Check what a task's `losses` gave for some samples, else a ConfigError."""
    if not isinstance(losses, Losses):
        raise ConfigError(
            f"{words}.losses gives a {type(losses).__name__}; return launcher.tasks.task.Losses(values), with "
            "weights and terms where there are some."
        )
    tensors = {"values": losses.values} | {f"term {name}": term for name, term in losses.terms.items()}
    tensors |= {} if losses.weights is None else {"weights": losses.weights}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.shape != (samples,):
            raise ConfigError(
                f"{words}: its {name} are {shapes_of(tensor)} for {samples} samples; give one number per sample, "
                f"[{samples}]."
            )
    if losses.weights is not None and bool((losses.weights < 0).any()):
        raise ConfigError(f"{words}: its weights are negative for some samples; give what each counts, 0 or more.")
    if set(losses.terms) != set(task.terms):
        raise ConfigError(
            f"{words}: its losses have the terms {', '.join(losses.terms) or 'none'}, and the class names "
            f"{', '.join(task.terms) or 'none'}: write terms = {(*losses.terms,)!r} in the class."
        )


@torch.no_grad()
def _depends_on_others(task: Task, model: nn.Module, inputs: Any, targets: Any) -> bool:
    """Whether the losses of samples, or their weights, are others where each is alone, in evaluation mode."""
    key = torch.default_generator.get_state()
    values, weights, _ = task.losses(model, inputs, targets)
    for i in range(len(values)):
        torch.default_generator.set_state(key)
        one = tree_map_only(Tensor, partial(Tensor.narrow, dim=0, start=i, length=1), (inputs, targets))
        try:
            alone, weight, _ = task.losses(model, *one)
        except Exception:
            return True  # it needs several samples
        pairs = [(values[i], alone[0])]
        if weights is not None and weight is not None:
            pairs.append((weights[i], weight[0]))
        if any(not torch.allclose(whole, single, rtol=1e-3, atol=1e-5) for whole, single in pairs):
            return True
    return False
