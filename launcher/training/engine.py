"""The hot loop: one optimizer update, and one evaluation."""

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn.parallel import DistributedDataParallel

from launcher.batching.keys import MODEL, derive
from launcher.batching.plan import BatchPlan, plan_batch
from launcher.batching.splits import DatasetSplit, TensorSplit, first_infinite
from launcher.batching.stream import Batch, ShardedStream, Stream, first_sample, in_order
from launcher.core.errors import BrokenFile, ConfigError, Explained, explained_kernels, is_out_of_memory
from launcher.data.source import Data
from launcher.distributed.process_group import Ranks, at_rank_0, from_rank_0, sum_over_ranks, sum_over_shards
from launcher.distributed.pulse import pulse
from launcher.losses.loss import PerSample
from launcher.metrics.sums import ClassificationSums, compute_metrics, make_metrics, update_metrics
from launcher.optimizers.optimizer import lean_step
from launcher.schedulers.schedule import Schedule
from launcher.training import layout
from launcher.training.clock import flops_per_sample, peak_flops
from launcher.training.divergence import Diverged, Rollbacks
from launcher.training.outputs import Outputs
from launcher.training.votes import MOST, Votes

ALWAYS: AbstractContextManager[None] = nullcontext()
LEAST_SCALE = 2.0**-14  # of a gradient scaler: a gradient that overflows even so is infinite


class Carried(nn.Module):
    """A model, and three numbers that ride on the reduction of its gradient.

    The gradient of `carried` is a rank's sum of loss weights, its vote to stop and the seconds since its last update.
    DDP averages it with the rest, in a bucket that travels anyway: every rank learns the numbers of the same step
    without a collective of their own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.carried = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Any) -> tuple[Any, Tensor]:
        """The model's outputs and, for DDP to see that it takes part, what rides along."""
        return self.model(inputs), self.carried.view(3)  # a leaf itself would count as unused


@dataclass
class Window:
    """The steps since the last log boundary: a rank's own sums, left on the device until somebody reads them.

    Attributes:
        steps: Updates done before each of the steps.
        losses: Sum of the (weighted) losses of the rank's samples, one scalar tensor per step.
        weights: Sum of their weights, one per step; for a loss without weights the number of samples.
        grad_norm: Norm of the last gradient before clipping, where it is clipped by it or asked for.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    weights: list[Tensor | float] = field(default_factory=list)
    grad_norm: Tensor | None = None

    def tensors(self, device: torch.device) -> list[Tensor]:
        """[n] losses and [n] weights of this rank, float64."""
        if not self.losses:
            return [torch.zeros(0, dtype=torch.float64, device=device)] * 2
        if any(isinstance(weight, Tensor) for weight in self.weights):
            weights = torch.stack([torch.as_tensor(w, dtype=torch.float64, device=device) for w in self.weights])
        else:  # one copy to the device in place of one a step
            weights = torch.tensor(self.weights, dtype=torch.float64, device=device)
        return [torch.stack(self.losses).double(), weights]

    def clear(self) -> None:
        """Begin the next window."""
        self.steps.clear()
        self.losses.clear()
        self.weights.clear()
        self.grad_norm = None  # else a window whose batches were all left out would show that of the one before


class Trainer:
    """One optimizer update after the other.

    Args:
        model: The bare model, on its device.
        loss: Per-sample losses.
        optimizer: Over the model's parameters.
        schedule: Stepped after each update.
        accelerator: What wraps the model.
        ranks: Which rank this is.
        seed: Of the run.
        clip_grad_norm: Largest norm of the gradient; None never clips.
        ema_decay: Of the moving average of the weights; None keeps none.
        compiled: Whether the model is compiled.
        channels_last: Whether images are laid out with their channels last, which convolutions like.
        rollbacks: Which batches to leave out, and how long to look at each.
        clip_grad_value: Largest absolute value of an element of the gradient; None never clips.
        log_grad_norm: Whether to note the gradient's norm where it is not clipped by it.

    Attributes:
        measured: What is evaluated and exported: the moving average where there is one, else the model.
        window: The steps since the last log boundary.
        lr: Learning rate of the last update.
        wants_to_stop: Set by who was asked to stop; goes into the next vote.
        votes: Those of all ranks, and the time that an update takes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PerSample,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        accelerator: Accelerator,
        ranks: Ranks,
        seed: int,
        clip_grad_norm: float | None,
        ema_decay: float | None,
        compiled: bool,
        channels_last: bool,
        rollbacks: Rollbacks,
        clip_grad_value: float | None = None,
        log_grad_norm: bool = False,
    ) -> None:
        self.clip_grad_value, self.log_grad_norm = clip_grad_value, log_grad_norm
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.ranks, self.seed, self.clip_grad_norm, self.ema_decay = ranks, seed, clip_grad_norm, ema_decay
        self.accelerator, self.device = accelerator, accelerator.device
        self.channels_last = channels_last
        if channels_last:
            layout.lay_out(model, keep_gradients=self.device.type == "cpu" and not compiled)
        self.scaler = accelerator.scaler  # None unless fp16
        self.window = Window()
        self.lr = schedule.lr
        self.wants_to_stop = False
        self.votes = Votes(MOST.get(self.device.type, 0), pinned=self.device.type == "cuda")
        self.rollbacks = rollbacks
        self.measured = model if ema_decay is None else copy.deepcopy(model).requires_grad_(False)
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._averaged: list[Tensor] = [
            p for p, q in zip(self.measured.parameters(), model.parameters(), strict=True) if q.requires_grad
        ]
        self._wrapped = False
        if compiled:  # distributed.choose_numerics has left out what this tells the compiler beside
            torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        self._carried: nn.Parameter | None = None
        self._rounded = False  # whether what rides on the gradients travels in half precision, as they do
        self._alone = False
        self.forward = self._wrap(torch.compile(model) if compiled else model, accelerator)
        if optimizer.state:  # Adagrad's, made before the parameters went to their device and into their layout
            layout.load_optimizer_state(optimizer, optimizer.state_dict())
        self.forward.train()  # once: walking over the modules costs as much as a small kernel
        self._losses = loss.forward  # of our own wrapper, which nobody hooks
        self._update = lean_step(optimizer)
        self._carry = torch.zeros(3, device=self.device)
        self._carried_seconds = self._carry[2]

    def _wrap(self, model: Any, accelerator: Accelerator) -> Any:
        """What Accelerate makes of the model: DDP, autocast, or for one process in full precision the model itself."""
        if self.ranks.world_size == 1 and accelerator.mixed_precision == "no":
            return model
        wrapper = Carried(model).to(self.device)
        self._wrapped = True
        if self.ranks.world_size > 1:
            self._carried = wrapper.carried
            handler = accelerator.ddp_handler
            self._rounded = handler is not None and handler.comm_hook != DDPCommunicationHookType.NO
        return accelerator.prepare_model(wrapper)

    def step(self, batch: Batch) -> bool:
        """Do one update; its loss is the exact mean over the global batch, however that is cut.

        Each micro-batch adds its sum of losses, divided by the samples of the global batch; DDP averages over the
        ranks, so the sum is multiplied by their number first. Where samples weigh differently the gradient is
        corrected by the global sum of weights at the end.

        Returns:
            True where a rank has asked to stop: the same step on all of them.
        """
        self.lr = self.schedule.lr
        self.votes.begin()
        if batch.step in self.rollbacks.skipped:
            self.schedule.step()
            return False
        careful = batch.step < self.rollbacks.careful_until
        buffers = [buffer.clone() for buffer in self.model.buffers()] if careful else []
        for parameter in self._parameters:
            parameter.grad = None
        total, weight_sum = self._backward(batch)
        if weight_sum is not None:
            self._divide_by_weights(weight_sum, batch.size)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if careful and self._is_bad(total):
            self.rollbacks.skip(batch.step)
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            if self.scaler is not None:
                self.scaler.update()  # which takes the next unscaling for a second one else
            self.schedule.step()
            return self._vote()
        if self.clip_grad_norm is not None:
            self.window.grad_norm = self._clip(self.clip_grad_norm)
        elif self.log_grad_norm:
            self.window.grad_norm = self._norm()
        if self.clip_grad_value is not None:
            nn.utils.clip_grad_value_(self._parameters, self.clip_grad_value)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._update()
        self.schedule.step()
        if self.ema_decay is not None:
            with torch.no_grad():  # else each average drags the history of all before it along
                torch._foreach_lerp_(self._averaged, self._parameters, 1 - self.ema_decay)
        self._note(batch, total, weight_sum)
        return self._vote()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Updates in here say nothing to the other ranks, and are noted nowhere: neither in schedule nor in window.

        Once it is warm, DDP does not hear a backward of the module that it wraps: its hooks on the parameters return
        unless its own forward has prepared them (torch/csrc/distributed/c10d/reducer.cpp, Reducer::autograd_hook, by
        expect_autograd_hooks_). A gradient scaler is left out, since it may leave out the step.
        """
        names = ("forward", "schedule", "scaler", "window", "lr", "votes", "_carried", "_rounded", "_alone")
        before = {name: getattr(self, name) for name in names}
        if isinstance(self.forward, DistributedDataParallel):
            self.forward = self.forward.module
        still: Any = SimpleNamespace(lr=self.schedule.lr, step=lambda: None)
        self.schedule, self.scaler, self.window, self.votes = still, None, Window(), Votes(0, pinned=False)
        self._carried, self._rounded, self._alone = None, False, True
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def settle(self) -> None:
        """Bring the moving average's buffers up to date, before it is evaluated or saved."""
        if self.ema_decay is not None:
            for averaged, buffer in zip(self.measured.buffers(), self.model.buffers(), strict=True):
                averaged.copy_(buffer)

    def read_window(self) -> dict[str, float]:
        """Mean loss (and gradient norm) since the last log boundary, over all ranks; begins the next window.

        Raises:
            Diverged: A loss, a weight or the optimizer's state is NaN or infinite.
        """
        losses, weights = self.check()
        figures = {}
        if len(losses):
            figures["train/loss"] = float(losses.sum() / weights.sum())
        if self.window.grad_norm is not None:
            figures["train/grad_norm"] = float(self.window.grad_norm)
        self.window.clear()
        return figures

    def check(self) -> tuple[Tensor, Tensor]:
        """Look at the losses since the last log boundary and at what is saved; before each log, evaluation and save.

        Returns:
            [n] sums of losses and [n] sums of weights over all ranks, float64, on the host; without the steps that
            a gradient scaler left out.

        Raises:
            Diverged: One is NaN or infinite, other than where a gradient scaler has left the step out.
        """
        reduced = sum_over_ranks(self.window.tensors(self.device), self.ranks.world_size)
        losses, weights = (tensor.cpu() for tensor in reduced)
        finite = losses.isfinite()
        if not self._healthy() or (not (finite.any() if self.scaler is not None else finite.all()) and len(losses)):
            bad = [step for step, good in zip(self.window.steps, finite.tolist(), strict=True) if not good]
            raise Diverged(bad[0] if bad else self.schedule.updates - 1, self.lr)
        return losses[finite], weights[finite]

    def warm_up(self, samples: Stream | ShardedStream) -> None:
        """Let DDP find its final order of work, and leave no trace.

        It regroups its buckets after the first backward, which changes the order of sums over 3 and more ranks: a
        resumed run would differ in bits from one that went through.
        """
        if not isinstance(self.forward, DistributedDataParallel):
            return
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        for _ in range(2):
            batch = next(samples.batches(0, 1))
            self._backward(Batch(batch.step, batch.size, batch.micros[-1:]))
            self.optimizer.zero_grad(set_to_none=True)  # an update has no gradients beside all activations either
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def operations(
        self, samples: Stream | ShardedStream, float32_matmul_precision: str
    ) -> tuple[float | None, float | None]:
        """Operations per sample, and the most that the device does per second; None where that is not known."""
        if self.device.type != "cuda":
            return None, None
        name = torch.cuda.get_device_name(self.device)
        peak = peak_flops(name, self.accelerator.mixed_precision, float32_matmul_precision)
        if peak is None:
            return None, None
        micro = next(samples.batches(0, 1)).micros[0]
        return flops_per_sample(self.model, micro.inputs, len(micro.targets)), peak

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Whole parameters and buffers of the model or the moving average by name, for rank 0 to save."""
        return model.state_dict()

    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Put what `weights` gave into the model or the moving average."""
        model.load_state_dict(weights)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's whole state, for rank 0 to save."""
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Put what `optimizer_state` gave into the optimizer."""
        layout.load_optimizer_state(self.optimizer, state)

    def _norm(self) -> Tensor:
        """Norm of the whole gradient."""
        return nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def _clip(self, largest: float) -> Tensor:
        """Scale the gradient down to a norm of at most `largest`; the norm before."""
        return nn.utils.clip_grad_norm_(self._parameters, largest)

    def _healthy(self) -> bool:
        """Whether every weight is finite, and what the optimizer remembers.

        Where an update is a sign or a quotient, as Lion's and Adagrad's, a state of NaN or infinity leaves the weights
        as they are, from then on.
        """
        if self.scaler is not None and self.scaler.get_scale() < LEAST_SCALE:  # it has left out every step for long
            return False
        remembered = (value for state in self.optimizer.state.values() for value in state.values())
        looked_at = [*self._parameters, *(v for v in remembered if isinstance(v, Tensor) and v.is_floating_point())]
        if torch.stack([norm.float() for norm in torch._foreach_norm(looked_at)]).sum().isfinite():
            return True
        return all(bool(one.isfinite().all()) for one in looked_at)  # the squares alone may have been too large

    def _note(self, batch: Batch, total: Tensor, weight_sum: Tensor | None) -> None:
        """Keep a step's sums for the next log boundary, without looking at them."""
        self.window.steps.append(batch.step)
        self.window.losses.append(total)
        self.window.weights.append(weight_sum if weight_sum is not None else float(sum(m.size for m in batch.micros)))

    def _is_bad(self, total: Tensor) -> bool:
        """Whether the loss or the gradient of this step is not finite, on any rank."""
        figure = total
        if self.scaler is None:  # which looks at the gradient itself, and overflows at times where nothing is wrong
            norms = torch._foreach_norm([p.grad for p in self._parameters if p.grad is not None])
            figure = torch.stack(norms).sum() + total
        (figure,) = sum_over_ranks([figure], self.ranks.world_size)
        return not bool(figure.isfinite())

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Gradients of a rank's micro-batches; the sums of its losses and, where samples weigh differently, weights."""
        self._seed(batch.step, self.ranks.rank)
        totals, weight_sums = [], []
        factor = self.ranks.world_size / batch.size
        last = len(batch.micros) - 1
        if self._carried is not None:
            self._carried.grad = None
        for i, micro in enumerate(batch.micros):
            pulse.batches += 1
            together = i == last or self._carried is None
            with ALWAYS if together else self.forward.no_sync():
                outputs, riding = self._run(micro.inputs)
                values, weights = self._losses(outputs, micro.targets)
                if micro.size < len(values):  # a placeholder, or a loss that returned more rows
                    values, weights = values[: micro.size], None if weights is None else weights[: micro.size]
                totals.append(values.detach().sum())
                if weights is not None:
                    weight_sums.append(weights.detach().sum())
                if i == last and self._carried is not None:
                    self._differentiate(values, factor, riding, self._ballot(weight_sums))
                else:
                    self._differentiate(values, factor)
        total = totals[0] if last == 0 else torch.stack(totals).sum()
        if not weight_sums:
            return total, None
        return total, weight_sums[0] if last == 0 else torch.stack(weight_sums).sum()

    def _run(self, inputs: Any) -> tuple[Any, Tensor | None]:
        """The model's outputs, and the tensor to whose gradient the two numbers that ride along are given."""
        found = self.forward(layout.channels_last(inputs) if self.channels_last else inputs)
        return found if self._wrapped else (found, None)

    def _differentiate(
        self, values: Tensor, factor: float, riding: Tensor | None = None, ballot: Tensor | None = None
    ) -> None:
        """Add the gradient of factor * sum(values), and `ballot` to that of the tensor that rides along.

        The engine takes the factor of each value as it is: a sum and two products less for it to run back through.
        """
        share = values.new_full(values.shape, factor)
        if self.scaler is not None:
            share = self.scaler.scale(share)
        roots: tuple[Tensor, ...] = (values,)
        shares: tuple[Tensor, ...] = (share,)
        if riding is not None and ballot is not None:
            roots, shares = (values, riding), (share, ballot)
        # What torch.autograd.backward ends with; its checks before take 30 us, a twentieth of a small model's step.
        _engine_run_backward(roots, shares, False, False, (), allow_unreachable=True, accumulate_grad=True)

    def _ballot(self, weight_sums: list[Tensor]) -> Tensor:
        if not weight_sums and not self.wants_to_stop:
            self._carried_seconds.fill_(self.votes.seconds)
            return self._carry
        weight = torch.stack(weight_sums).sum() if weight_sums else torch.zeros((), device=self.device)
        own = (torch.full_like(weight, float(n), dtype=torch.float32) for n in (self.wants_to_stop, self.votes.seconds))
        return torch.stack([weight.float(), *own])

    def _divide_by_weights(self, weight_sum: Tensor, samples: int) -> None:
        if self._rounded:
            (weight_sum,) = sum_over_ranks([weight_sum], self.ranks.world_size)
        elif self._carried is not None:
            assert self._carried.grad is not None
            weight_sum = self._carried.grad[0] * self.ranks.world_size
        # A batch of weight 0 (all of it ignored) has gradient 0, not 0/0.
        correction = samples / weight_sum.where(weight_sum > 0, 1)
        torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], correction)

    def _vote(self) -> bool:
        """Whether some rank asked to stop, read so that every rank reads the vote of the same step."""
        if self._carried is None or self._carried.grad is None:
            self.votes.note(self.votes.seconds)
            return self.wants_to_stop
        return self.votes.add(self._carried.grad[1:])

    def _seed(self, step: int, rank: int) -> None:
        """Dropout as a function of (seed, step, rank)."""
        key = derive(self.seed, MODEL, step, rank) >> 1
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(key)


@contextmanager
def advice(plan: BatchPlan, trainer: Trainer) -> Iterator[None]:
    """Say what to do about an error of the device's memory, of DDP's, or of kernels that are not deterministic.

    Raises:
        Explained: DDP waits for the gradients of parameters that a step did not use, or used twice; or an operation
            has no deterministic kernel.
    """
    try:
        with explained_kernels():
            yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            size = max(1, plan.micro_size // 2)
            error.add_note(f"Out of memory: use batch.max_per_device={size}, or auto. The result stays the same.")
            raise
        text = str(error)
        if found := re.search(r"did not receive grad for rank \d+: ([\d ]+)", text):
            names = [name for name, one in trainer.model.named_parameters() if one.requires_grad]
            unused = ", ".join(names[int(index) - 1] for index in found[1].split()[:20])  # the first is what is carried
            if "static_graph" in text:
                how = "strategy.static_graph=true is for steps that all use the same: say false, and"
            else:
                how = "Several processes wait for them: say"
            raise Explained(
                f"a step does not use all parameters: {unused} had no gradient. {how} "
                "strategy.find_unused_parameters=true, or freeze those that no step uses."
            ) from error
        if "ready only once" in text:
            raise Explained(
                "a step uses parameters twice, in a way that DDP does not follow (checkpoints within checkpoints, or "
                f"use_reentrant=True): say strategy.static_graph=true. ({' '.join(text.split())[:200]} ...)"
            ) from error
        raise


def check_exact(model: nn.Module) -> None:
    """Refuse what cannot have the same bits on any number of devices.

    Raises:
        ConfigError: The model normalises over the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"exact_across_devices: {name} is a {type(module).__name__}, whose statistics depend on who saw which "
                "samples. Use GroupNorm or LayerNorm."
            )


def check_alone(model: nn.Module, data: Data, plan: BatchPlan, most: int | str | None, steps: int) -> None:
    """Refuse a BatchNorm that would get a single value per channel, where some device sees one sample alone.

    Args:
        model: The bare model, also one on the meta device.
        data: Its first sample is shown to a copy of the model without memory.
        plan: How a global batch is cut.
        most: The setting batch.max_per_device.
        steps: Updates of the run.

    Raises:
        ConfigError: One would.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    alone, at = plan.smallest(steps)
    if alone > 1 or not any(isinstance(module, norms) and module.training for module in model.modules()):
        return
    inputs = torch.utils._pytree.tree_map_only(Tensor, lambda one: one.to("meta"), first_sample(data.train)[0])
    try:
        copy.deepcopy(model).to("meta")(inputs)
    except Exception as error:  # anything else is not for here: not every model works without memory
        if "more than 1 value per channel" not in str(error):
            return
        where = f"{'the last update of an epoch' if at else 'each update'}, whose size is {plan.size_of(at)}"
        change = _without_alone(plan, most, steps)
        raise ConfigError(
            f"batch.global_size={plan.global_size}, batch.max_per_device={most or 'null'}: in {where}, a device sees "
            "one sample alone, in which BatchNorm has nothing to take a variance of. "
            + (f"Use {change}, or" if change else "Use")
            + " a model without BatchNorm (of timm and torchvision: model.norm=group)."
        ) from error


def _without_alone(plan: BatchPlan, most: int | str | None, steps: int) -> str | None:
    """The nearest settings with which no device sees one sample alone; None where none were found."""
    for larger in range(plan.micro_size + 1, plan.per_device_size + 1):
        if plan.capped(larger).smallest(steps)[0] > 1:
            return f"batch.max_per_device={larger}"
    for cap in dict.fromkeys((most, None)):
        for size in (plan.global_size + sign * apart for apart in range(1, 1000) for sign in (1, -1)):
            if plan.world_size <= size <= plan.samples:
                other = plan_batch(plan.samples, size, plan.world_size, cap)
                if other.smallest(other.steps_per_epoch)[0] > 1:
                    return f"batch.global_size={size}{' batch.max_per_device=null' if cap != most else ''}"
    return None


class ExactTrainer(Trainer):
    """Updates that have the same bits on any number of devices that divides the number of shards.

    The global batch is cut into a fixed number of shards, whatever the devices. Each shard has a gradient and dropout
    of its own; the gradients are gathered and summed in the order of the shards. It costs a copy of the gradient per
    shard, and a gather where DDP reduces while it computes.
    """

    def _wrap(self, model: Any, accelerator: Accelerator) -> Any:
        if accelerator.mixed_precision == "no":
            return model
        self._wrapped = True
        return accelerator.prepare_model(Carried(model).to(self.device), evaluation_mode=True)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rows = []
        weighted = False
        for shard, micros in groupby(batch.micros, key=lambda micro: micro.shard):
            self._seed(batch.step, shard)
            for parameter in self._parameters:
                parameter.grad = None
            total = torch.zeros((), device=self.device)
            weight_sum = torch.zeros((), device=self.device)
            for micro in micros:
                pulse.batches += 1
                values, weights = self._losses(self._run(micro.inputs)[0], micro.targets)
                values = values[: micro.size]
                total += values.detach().sum()
                if weights is not None:
                    weighted = True
                    weight_sum += weights[: micro.size].detach().sum()
                self._differentiate(values, 1 / batch.size)
            own = self.wants_to_stop, self.votes.seconds
            vote, seconds = (torch.full_like(total, float(number)) for number in own)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
            rows.append(torch.cat([*(g.flatten() for g in gradients), torch.stack([total, weight_sum, vote, seconds])]))
        mine = torch.stack(rows)
        every = [mine]
        if self.ranks.world_size > 1:
            every = [torch.empty_like(mine) for _ in range(self.ranks.world_size)]
            if self._alone:  # the same memory
                for one in every:
                    one.copy_(mine)
            else:
                dist.all_gather(every, mine)
        first, *others = torch.cat(every).unbind()
        summed = first.clone()
        for other in others:
            summed += other
        *gradient, total, weight_sum, votes = summed.split([*(p.numel() for p in self._parameters), 1, 1, 2])
        for parameter, part in zip(self._parameters, gradient, strict=True):
            parameter.grad = layout.like(parameter, part.view(parameter.shape))
        self._stop = self.votes.add(votes / (len(others) + 1))
        return total[0], weight_sum[0] if weighted else None

    def _note(self, batch: Batch, total: Tensor, weight_sum: Tensor | None) -> None:
        """The sums are those of all shards already: rank 0 keeps them for all."""
        # Not torch.tensor: it is made on the host, and the copy waits for the device.
        weight = total.new_full((), batch.size) if weight_sum is None else weight_sum
        factor = float(self.ranks.rank == 0)
        self.window.steps.append(batch.step)
        self.window.losses.append(total * factor)
        self.window.weights.append(weight * factor)

    def _vote(self) -> bool:
        return self._stop


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        samples: How many were counted, each once.
        figures: Metric name to number: loss, accuracy, macro_f1, top5 or f1; or accuracy, micro_f1, macro_f1 of
            labels; or mae, rmse, r2; or accuracy, perplexity; and what `metrics` names.
        per_class_accuracy: Share of each class that was found; of a classification alone.
        confusion: Rows: the true class, columns: the predicted one; of a classification alone.
    """

    samples: int
    figures: dict[str, float]
    per_class_accuracy: list[float | None] | None = None
    confusion: list[list[int]] | None = None

    def as_dict(self, part: str, class_names: list[str] | None) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "part": part,
            "samples": self.samples,
            "metrics": self.figures,
            "class_names": class_names,
            "per_class_accuracy": self.per_class_accuracy,
            "confusion": self.confusion,
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: PerSample,
    part: TensorSplit | DatasetSplit,
    meaning: Outputs,
    accelerator: Accelerator,
    ranks: Ranks,
    batch_size: int,
    workers: int | str,
    metrics: Iterable[Any] = (),
    shards: int | None = None,
    interrupted: Callable[[], bool] | None = None,
    gathers: bool = False,
) -> Evaluation | None:
    """Measure a model on a part, each sample exactly once at any number of ranks.

    Args:
        model: The bare model; it is left in the mode it was in.
        loss: Per-sample losses.
        part: What to measure on.
        meaning: Of the model's outputs.
        accelerator: For its device and its autocast.
        ranks: Which rank this is.
        batch_size: Most samples at once.
        workers: Processes that load samples which are not in memory.
        metrics: torchmetrics by name; they are computed on rank 0 over all samples in order.
        shards: Pieces that the part is cut into and whose sums are added in order; None: one per rank.
        interrupted: Asked before each batch; True ends the evaluation here.
        gathers: Whether a forward takes all ranks: they then do equally many, and end together.

    Returns:
        The figures, the same on every rank; None where some rank was interrupted.
    """
    device, world = accelerator.device, ranks.world_size
    shards = shards or world
    was_training = model.training
    model.eval()
    if world > 1:
        for buffer in model.buffers():  # BatchNorm's, which only rank 0 keeps up to date
            dist.broadcast(buffer, src=0)
    extra = make_metrics(list(metrics), meaning) if metrics else {}
    kept: list[tuple[Tensor, Tensor]] = []
    of_shard: list[list[Tensor]] = []
    sums = meaning.sums(device)
    for shard in range(shards * ranks.rank // world, shards * (ranks.rank + 1) // world):
        sums = meaning.sums(device)
        loss_sum, weight_sum, counted = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
        stopped = torch.zeros((), device=device)
        batches = in_order(part, shard, shards, batch_size, device, workers)
        for inputs, targets in _equally_many(batches, part, shards, batch_size, device) if gathers else batches:
            pulse.batches += 1
            if interrupted is not None:
                asked = interrupted()
                if gathers:
                    (together,) = sum_over_ranks([torch.tensor(float(asked), device=device)], world)
                    asked = together.item() > 0
                if asked:
                    stopped += 1
                    break
            with accelerator.autocast():
                outputs = model(inputs)
            if not len(targets):  # a placeholder, for the others' sake
                continue
            outputs = outputs.float()
            values, weights = loss(outputs, targets)
            loss_sum += values.double().sum()
            weight_sum += len(targets) if weights is None else weights.double().sum()
            counted += len(targets)
            scores = meaning.scores(outputs)
            sums.update(scores, targets)
            if extra:
                kept.append((scores.cpu(), targets.cpu()))
        of_shard.append([stopped, counted, loss_sum, weight_sum, *sums.tensors()])
    model.train(was_training)
    stacked = [torch.stack(tensors) for tensors in zip(*of_shard, strict=True)]
    stopped, counted, loss_sum, weight_sum, *rest = sum_over_shards(stacked, world)
    if stopped.item():
        return None
    for mine, summed in zip(sums.tensors(), rest, strict=True):
        mine.copy_(summed)
    figures = {"loss": (loss_sum / weight_sum).item()} | sums.figures()
    if not math.isfinite(figures["loss"]):
        _check_inputs(part, ranks, batch_size)
    if extra:
        gathered = at_rank_0(kept, world, ranks.rank)
        if gathered is not None:
            for scores, targets in (pair for of_rank in gathered for pair in of_rank):
                pulse.batches += 1
                update_metrics(extra, meaning, scores, targets)
            figures |= compute_metrics(extra)
        figures = from_rank_0(figures, world)  # what is chosen by them is chosen by every rank
    if isinstance(sums, ClassificationSums):
        return Evaluation(int(counted), figures, sums.per_class_accuracy(), sums.confusion())
    return Evaluation(int(counted), figures)


def _check_inputs(part: TensorSplit | DatasetSplit, ranks: Ranks, batch_size: int) -> None:
    """Look for what made a loss infinite in the samples themselves.

    Raises:
        BrokenFile: One of this rank's share holds NaN or infinity.
    """
    first = len(part) * ranks.rank // ranks.world_size
    for inputs, targets in in_order(part, ranks.rank, ranks.world_size, batch_size, torch.device("cpu"), 0):
        pulse.batches += 1
        if (row := first_infinite(inputs)) is not None:
            raise BrokenFile(f"data: the inputs of sample {first + row} of what is measured hold NaN or infinity")
        first += len(targets)


def _equally_many(
    batches: Iterator[tuple[Any, Any]],
    part: TensorSplit | DatasetSplit,
    shards: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Any, Any]]:
    """A share's batches and, where a larger share has one more, a placeholder without targets."""
    missing = math.ceil(math.ceil(len(part) / shards) / batch_size)
    for batch in batches:
        missing -= 1
        yield batch
    for _ in range(missing):
        inputs, targets = next(in_order(part, 0, len(part), 1, device, 0))
        yield inputs, targets[:0]


def check_figures(meaning: Outputs, metrics: Iterable[Any], wanted: Mapping[str, str | None]) -> None:
    """Check, before anything is measured, that an evaluation will have the figures that settings name.

    Args:
        meaning: Of the model's outputs, which decides what there is.
        metrics: torchmetrics by name.
        wanted: Setting to figure, such as `checkpoint.best` to `eval/loss`; None names none.

    Raises:
        ConfigError: There will be no such figure, or no such metric.
    """
    names = ["loss", *meaning.sums("cpu").figures(), *make_metrics(list(metrics), meaning)]
    known = [f"eval/{name}" for name in names]
    for setting, figure in wanted.items():
        if figure is not None and figure not in known:
            raise ConfigError(f"{setting}={figure}: the evaluation has no such figure. It has: {', '.join(known)}.")
