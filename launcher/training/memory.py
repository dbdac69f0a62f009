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
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from launcher.batching.plan import MORE_TO_EVALUATE
from launcher.losses.loss import PerSample
from launcher.training import layout

aten = torch.ops.aten


@dataclass(frozen=True)
class Need:
    """Bytes that a device needs for a model, whole on each device.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of what is trained.
        states: What the optimizer keeps; None where its step needs numbers.
        average: A moving average of the weights.
        micro_size: Samples that a device sees at once.
        peak: Most bytes at any moment of training and evaluating, the four above included; None where the model, the
            loss or the optimizer needs numbers.
        per_sample: By how much `peak` grows with each further sample at once.
    """

    weights: int
    gradients: int
    states: int | None
    average: int
    micro_size: int
    peak: int | None
    per_sample: float

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

    Args:
        before: Tensors that were there.
        on_cpu: Whether to count what convolutions take there while they run: oneDNN copies images that do not have
            their channels last into a layout of its own, forward what is larger of inputs and outputs, backward both.

    Attributes:
        now: Bytes that are alive.
        peak: Most bytes that were.
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


def count_need(
    model: nn.Module,
    loss: PerSample,
    optimizer: torch.optim.Optimizer,
    fake: FakeTensorMode,
    sample: tuple[Any, Any],
    micro_size: int,
    accumulates: bool,
    averages: bool,
    precision: str,
    channels_last: bool,
    on_cpu: bool,
    evaluates: int = MORE_TO_EVALUATE,
) -> Need:
    """Do two updates and an evaluation on fake tensors, and count.

    Args:
        model: Of `fake_model`.
        loss: Per-sample losses.
        optimizer: Over the model's parameters; afterwards its state is fake too.
        fake: The mode that the model was made in.
        sample: Inputs and targets of one sample, [1, ...] each, as the model gets them.
        micro_size: Samples that a device sees at once in training.
        accumulates: Whether an update has several micro-batches: gradients then wait beside the next one's activations.
        averages: Whether a moving average of the weights is kept.
        precision: no, bf16 or fp16.
        channels_last: As the setting.
        on_cpu: Whether the run will be on one.
        evaluates: Micro-batches that an evaluation takes at once.
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
        for size in (micro_size, 2 * micro_size):
            with fake, Meter([*model.parameters(), *model.buffers(), *kept], on_cpu) as meter:
                _train(model, loss, sample, size, 1 + accumulates, precision, channels_last)
                if not fused:  # which makes nothing but the states
                    optimizer.step()
                _evaluate(model, loss, sample, evaluates * size, precision, channels_last)
                optimizer.zero_grad(set_to_none=True)
            peaks.append(meter.peak)
    except Exception:  # as above
        peaks = []
    average = weights if averages else 0
    return Need(
        weights, sum(parameter.nbytes for parameter in trained), states, average, micro_size,
        average + peaks[0] if peaks else None, (peaks[1] - peaks[0]) / micro_size if peaks else 0.0,
    )  # fmt: skip


def _train(
    model: nn.Module, loss: PerSample, sample: Any, size: int, micro_batches: int, precision: str, channels_last: bool
) -> None:
    """The gradients of some micro-batches of `size` samples each, as engine.py takes them."""
    model.train()
    for _ in range(micro_batches):
        _losses(model, loss, sample, size, precision, channels_last).sum().backward()


@torch.no_grad()
def _evaluate(model: nn.Module, loss: PerSample, sample: Any, size: int, precision: str, channels_last: bool) -> None:
    """A batch of an evaluation."""
    model.eval()
    _losses(model, loss, sample, size, precision, channels_last)


def _losses(model: nn.Module, loss: PerSample, sample: Any, size: int, precision: str, channels_last: bool) -> Tensor:
    """[size] losses of as many samples."""
    inputs, targets = tree_map_only(Tensor, lambda one: one.new_empty((size, *one.shape[1:])), sample)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast("cpu", dtype=half, enabled=half is not None):
        outputs = model(layout.channels_last(inputs) if channels_last else inputs)
    return loss(outputs.float(), targets)[0]


def bytes_of(tree: Any) -> int:
    """Of all tensors in a pytree."""
    return sum(leaf.nbytes for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
