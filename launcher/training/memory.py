"""The memory that training takes: counted in updates on fake tensors, which have shapes, types and no numbers.

They are those of torch.compile (`FakeTensorMode`): every operation runs its own shape rules, autocast included, and
nothing is allocated. What lives when is then counted exactly; what libraries take for themselves is not in it.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn

from launcher.batching.plan import MORE_TO_EVALUATE
from launcher.core.compat import FakeCopyMode, FakeTensorMode, TorchDispatchMode, tree_map_only
from launcher.tasks.task import Task
from launcher.training import layout

aten = torch.ops.aten


@dataclass(frozen=True)
class Need:
    """Bytes that a device needs for a model, whole on each device."""

    weights: int  # parameters and buffers
    gradients: int  # of what is trained
    states: int | None  # what the optimizer keeps; None where its step needs numbers
    average: int  # a moving average of the weights
    micro_size: int  # samples that a device sees at once
    peak: int | None  # most at any moment, the four above included; None where model, loss or optimizer needs numbers
    per_sample: float  # by how much `peak` grows with each further sample at once

    @property
    def state(self) -> int:
        """What stays from one update to the next."""
        return self.weights + self.gradients + (self.states or 0) + self.average

    @property
    def saved(self) -> int:
        """What a checkpoint holds."""
        return self.weights + (self.states or 0) + self.average

    def fits(self, free: int) -> int | None:
        """Most samples at once in so many free bytes, 0 where none does; None where that is not known."""
        if self.peak is None or self.per_sample <= 0:
            return None
        return max(0, int((free - self.peak) / self.per_sample) + self.micro_size)


class Meter(TorchDispatchMode):
    """Counts the bytes of tensors that were there before, and of each that is made while it is on, until it is gone.

    With `on_cpu` also what convolutions take there while they run: oneDNN copies images that do not have their channels
    last into a layout of its own, forward what is larger of inputs and outputs, backward both.
    """

    def __init__(self, before: Iterable[Tensor], on_cpu: bool) -> None:
        super().__init__()
        self.on_cpu = on_cpu
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in before:
            self._count(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        found = tree_map_only(Tensor, self._count, function(*args, **(kwargs or {})))
        if self.on_cpu and function in (aten.convolution.default, aten.convolution_backward.default):
            forward = function is aten.convolution.default
            images = [args[0], found] if forward else [args[0], args[1]]
            copied = [0 if one.is_contiguous(memory_format=torch.channels_last) else one.nbytes for one in images]
            self.peak = max(self.peak, self.now + (max(copied) if forward else sum(copied)))
        return found

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:  # else a view of what was counted
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return tensor

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def fake_model(build: Callable[[], nn.Module], fake: FakeTensorMode) -> nn.Module:
    """A model of fake tensors; built in memory first where its constructor needs the values of its weights."""
    try:
        with fake:
            return build()
    except Exception:  # whatever a constructor does with a number that is not there; it raises again if it is wrong
        model = build()
        with FakeCopyMode(fake):
            return copy.deepcopy(model)


@dataclass(frozen=True)
class Workload:
    """What a device will do."""

    micro_size: int  # samples that it sees at once in training
    accumulates: bool = False  # several micro-batches an update: gradients wait beside the next one's activations
    averages: bool = False  # a moving average of the weights is kept
    precision: str = "no"  # or bf16, fp16
    channels_last: bool = False
    on_cpu: bool = True
    evaluates: int = MORE_TO_EVALUATE  # micro-batches that an evaluation takes at once


def count_need(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    fake: FakeTensorMode,
    sample: tuple[Any, Any],
    work: Workload,
) -> Need:
    """Do two updates and an evaluation on fake tensors, and count; the optimizer's state is fake afterwards.

    The sample is inputs and targets of one, [1, ...] each, as the model gets them.
    """
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = [group for group in optimizer.param_groups if group.get("fused")]
    for group in fused:  # no kernel of that kind works without memory; the states are the same
        group["fused"] = False
    states, peaks = None, []
    try:
        with fake:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        states = sum(tensor.nbytes for tensor in kept)
        for size in (work.micro_size, 2 * work.micro_size):
            with fake, Meter([*model.parameters(), *model.buffers(), *kept], work.on_cpu) as meter:
                model.train()
                for _ in range(1 + work.accumulates):
                    _losses(model, task, sample, size, work).sum().backward()
                if not fused:  # which makes nothing but the states
                    optimizer.step()
                model.eval()
                with torch.no_grad():
                    _losses(model, task, sample, work.evaluates * size, work)
                optimizer.zero_grad(set_to_none=True)
            peaks.append(meter.peak)
    except Exception:  # as above
        peaks = []
    average = weights if work.averages else 0
    return Need(
        weights, sum(parameter.nbytes for parameter in trained), states, average, work.micro_size,
        average + peaks[0] if peaks else None, (peaks[1] - peaks[0]) / work.micro_size if peaks else 0.0,
    )  # fmt: skip


def _losses(model: nn.Module, task: Task, sample: Any, size: int, work: Workload) -> Tensor:
    """[size] losses of as many samples."""
    inputs, targets = tree_map_only(Tensor, lambda one: one.new_empty((size, *one.shape[1:])), sample)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(work.precision)
    with torch.autocast("cpu", dtype=half, enabled=half is not None):
        inputs = layout.channels_last(inputs) if work.channels_last else inputs
        return task.losses(model, inputs, targets).values
