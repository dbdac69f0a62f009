"""The hot loop: one optimizer update after the other."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from launcher.batching.keys import DROPOUT, derive
from launcher.batching.stream import Batch, CanonicalStream, Stream
from launcher.core.compat import engine_run_backward, foreach_lerp_, foreach_mul_, foreach_norm
from launcher.distributed.collectives import sum_over_ranks
from launcher.distributed.pulse import pulse
from launcher.distributed.ranks import Ranks
from launcher.optimizers.lean_step import lean_step
from launcher.schedulers.schedule import Schedule
from launcher.tasks.task import Task, stack_terms
from launcher.training import layout
from launcher.training.divergence import Diverged, Rollbacks
from launcher.training.flops import flops_per_sample, peak_flops
from launcher.training.frozen_base import NO_BASE, FrozenBase
from launcher.training.reduction import Reduction

ALWAYS: AbstractContextManager[None] = nullcontext()
# Values [n], weights [n] and terms [n, k] of a batch, or None, and the tensor whose gradient is the payload.
Learned = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
LEAST_SCALE = 2.0**-14  # of a gradient scaler: a gradient that overflows even so is infinite


@dataclass(frozen=True)
class Learner:
    """What is trained, and by what."""

    model: nn.Module  # the bare one
    task: Task
    optimizer: torch.optim.Optimizer  # over the parameters that are trained
    schedule: Schedule  # stepped after each update
    base: FrozenBase = NO_BASE  # what of the model no checkpoint holds


@dataclass(frozen=True)
class TrainerSettings:
    """What an update does beside gradient and optimizer step; named as in the config, None for never."""

    seed: int = 0
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None  # largest absolute value of an element
    log_grad_norm: bool = False  # also where the gradient is not clipped by it
    ema_decay: float | None = None
    compile: bool = False
    channels_last: bool = False

    @classmethod
    def of(cls, settings: Any) -> "TrainerSettings":
        """Those of a run's config."""
        return cls(**{one.name: settings[one.name] for one in fields(cls)})


class Carrier(nn.Module):
    """A model at its task, and three numbers whose gradient DDP averages with that of the model, in one of its buckets.

    It is not in reduction.py: a rank in a forward is at work, one in there waits for others (pulse.py).
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = (task,)  # in a tuple, of which nobody takes its modules for those of the model
        self.carried = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Any, targets: Any) -> "Learned":
        """What the task says of a batch and, for DDP to see that it takes part, what rides along."""
        task = self._task[0]
        values, weights, terms = task.losses(self.model, inputs, targets)
        # A leaf itself would count as unused.
        return values, weights, stack_terms(task, terms) if terms else None, self.carried.view(3)


@dataclass
class LossAccumulator:
    """The steps since the last log line: a rank's own sums, left on the device until somebody reads them."""

    steps: list[int] = field(default_factory=list)  # updates done before each of them
    losses: list[Tensor] = field(default_factory=list)  # [] or [1 + terms], sums of the rank's (weighted) losses
    weights: list[Tensor | float] = field(default_factory=list)  # of their weights; without weights, of samples
    grad_norm: Tensor | None = None  # of the last gradient before clipping, where it is clipped by it or asked for

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Losses [n], or [n, 1 + terms], and weights [n] of this rank, float64."""
        if not self.losses:
            return [torch.zeros(0, dtype=torch.float64, device=device)] * 2
        if any(isinstance(weight, Tensor) for weight in self.weights):
            weights = torch.stack([torch.as_tensor(w, dtype=torch.float64, device=device) for w in self.weights])
        else:  # one copy to the device in place of one a step
            weights = torch.tensor(self.weights, dtype=torch.float64, device=device)
        return [torch.stack(self.losses).double(), weights]


class Trainer:
    """One optimizer update after the other, of a learner whose model and task are on the device."""

    def __init__(
        self,
        learner: Learner,
        settings: TrainerSettings,
        accelerator: Accelerator,
        ranks: Ranks,
        rollbacks: Rollbacks | None = None,
    ) -> None:
        self.model, self.task = learner.model, learner.task
        self.optimizer, self.schedule = learner.optimizer, learner.schedule
        self.settings, self.ranks, self.base = settings, ranks, learner.base
        self.accelerator, self.device = accelerator, accelerator.device
        model = self.model
        if settings.channels_last:
            layout.lay_out(model, keep_gradients=self.device.type == "cpu" and not settings.compile)
        self.scaler = accelerator.scaler  # None unless fp16
        self.accumulator = LossAccumulator()
        self.lr = self.schedule.lr  # of the last update
        self.reduction = Reduction(ranks.world_size, self.device)
        self.rollbacks = rollbacks or Rollbacks()
        # What is evaluated and exported: the moving average where there is one
        self.eval_model = model if settings.ema_decay is None else copy.deepcopy(model).requires_grad_(False)
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._averaged: list[Tensor] = [
            p for p, q in zip(self.eval_model.parameters(), model.parameters(), strict=True) if q.requires_grad
        ]
        self._wrapped = False
        if settings.compile:  # distributed.choose_numerics has left out what this tells the compiler beside
            torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        self._alone = False
        self.forward = self._wrap(torch.compile(model) if settings.compile else model)
        if self.optimizer.state:  # Adagrad's, made before the parameters went to their device and into their layout
            layout.load_optimizer_state(self.optimizer, self.optimizer.state_dict())
        self.forward.train()  # once: walking over the modules costs as much as a small kernel
        self._losses = self.task.losses
        self._update = lean_step(self.optimizer)

    def _wrap(self, model: Any) -> Any:
        """What Accelerate makes of the model: DDP, autocast, or for one process in full precision the model itself."""
        if self.ranks.world_size == 1 and self.accelerator.mixed_precision == "no":
            return model
        carrier = Carrier(model, self.task).to(self.device)
        self._wrapped = True
        if self.ranks.world_size > 1:
            self.reduction.carried = carrier.carried
            handler = self.accelerator.ddp_handler
            self.reduction.rounded = handler is not None and handler.comm_hook != DDPCommunicationHookType.NO
        return self.accelerator.prepare_model(carrier)

    def step(self, batch: Batch) -> bool:
        """Do one update; its loss is the exact mean over the global batch, however that is cut.

        In this order: gradient, its weights, the scaler's unscaling, a look whether it is finite, clipping, the
        optimizer, the schedule, the moving average.

        Each micro-batch adds its sum of losses, divided by the samples of the global batch; DDP averages over the
        ranks, so the sum is multiplied by their number first. Where samples weigh differently the gradient is
        corrected by the global sum of weights at the end.

        Returns:
            True where a rank has asked to stop: the same step on all of them.
        """
        self.lr = self.schedule.lr
        self.reduction.begin()
        if batch.step in self.rollbacks.skipped:
            self.schedule.step()
            return False
        careful = batch.step < self.rollbacks.careful_until
        buffers = [buffer.clone() for buffer in self.model.buffers()] if careful else []
        for parameter in self._parameters:
            parameter.grad = None
        total, weight_sum = self._backward(batch)
        if weight_sum is not None:
            of_all = self.reduction.total_weight(weight_sum)
            # A batch of weight 0 (all of it ignored) has gradient 0, not 0/0.
            correction = batch.size / of_all.where(of_all > 0, 1)
            foreach_mul_([p.grad for p in self._parameters if p.grad is not None], correction)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if careful and self._is_bad(total):
            self.rollbacks.skip(batch.step)
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            if self.scaler is not None:
                self.scaler.update()  # which takes the next unscaling for a second one else
            self.schedule.step()
            return self.reduction.stops()
        if self.settings.clip_grad_norm is not None:
            self.accumulator.grad_norm = self._norm()
            nn.utils.clip_grads_with_norm_(self._parameters, self.settings.clip_grad_norm, self.accumulator.grad_norm)
        elif self.settings.log_grad_norm:
            self.accumulator.grad_norm = self._norm()
        if self.settings.clip_grad_value is not None:
            nn.utils.clip_grad_value_(self._parameters, self.settings.clip_grad_value)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._update()
        self.schedule.step()
        if self.settings.ema_decay is not None:
            with torch.no_grad():  # else each average drags the history of all before it along
                foreach_lerp_(self._averaged, self._parameters, 1 - self.settings.ema_decay)
        self._note(batch, total, weight_sum)
        return self.reduction.stops()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Updates in here say nothing to the other ranks, and are noted nowhere, neither by schedule nor accumulator.

        Once it is warm, DDP does not hear a backward of the module that it wraps: its hooks on the parameters return
        unless its own forward has prepared them (torch/csrc/distributed/c10d/reducer.cpp, Reducer::autograd_hook, by
        expect_autograd_hooks_). A gradient scaler is left out, since it may leave out the step.
        """
        names = ("forward", "schedule", "scaler", "accumulator", "lr", "reduction", "_alone")
        before = {name: getattr(self, name) for name in names}
        if isinstance(self.forward, DistributedDataParallel):
            self.forward = self.forward.module
        still: Any = SimpleNamespace(lr=self.schedule.lr, step=lambda: None)
        self.schedule, self.scaler, self.accumulator, self._alone = still, None, LossAccumulator(), True
        self.reduction = Reduction(1, self.device, most=0)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def sync_ema_buffers(self) -> None:
        """Bring the moving average's buffers up to date, before it is evaluated or saved."""
        if self.settings.ema_decay is not None:
            for averaged, buffer in zip(self.eval_model.buffers(), self.model.buffers(), strict=True):
                averaged.copy_(buffer)

    def read_metrics(self) -> dict[str, float]:
        """Mean loss (and gradient norm) since the last log line, over all ranks; begins anew. Raises as `check`."""
        losses, weights = self.check()
        metrics = {}
        if len(losses):
            means = [float(sums.sum() / weights.sum()) for sums in losses.unbind(1)]
            metrics = dict(zip((f"train/{name}" for name in ("loss", *self.task.terms)), means, strict=True))
        if self.accumulator.grad_norm is not None:
            metrics["train/grad_norm"] = float(self.accumulator.grad_norm)
        self.accumulator = LossAccumulator()
        return metrics

    def check(self) -> tuple[Tensor, Tensor]:
        """Look at the losses since the last log line and at what is saved; before each log, evaluation and save.

        Returns:
            Sums of losses [n, 1 + terms] and of weights [n] over all ranks, float64, on the host; without the steps
            that a gradient scaler left out.

        Raises:
            Diverged: One is NaN or infinite, other than where a gradient scaler has left the step out.
        """
        reduced = sum_over_ranks(self.accumulator.tensors(self.device), self.ranks.world_size)
        losses, weights = (tensor.cpu() for tensor in reduced)
        losses = losses.reshape(len(weights), 1 + len(self.task.terms))
        finite = losses.isfinite().all(1)
        if not self._healthy() or (not (finite.any() if self.scaler is not None else finite.all()) and len(losses)):
            bad = [step for step, good in zip(self.accumulator.steps, finite.tolist(), strict=True) if not good]
            raise Diverged(bad[0] if bad else self.schedule.updates - 1, self.lr)
        return losses[finite], weights[finite]

    def warm_up(self, samples: Stream | CanonicalStream) -> None:
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

    def operations(self, samples: Stream | CanonicalStream, precision: str) -> tuple[float | None, float | None]:
        """Operations per sample, and the most that the device does per second; None where that is not known."""
        if self.device.type != "cuda":
            return None, None
        peak = peak_flops(torch.cuda.get_device_name(self.device), self.accelerator.mixed_precision, precision)
        if peak is None:
            return None, None
        micro = next(samples.batches(0, 1)).micros[0]
        return flops_per_sample(self.model, micro.inputs, micro.size), peak

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Whole parameters and buffers of the model or the moving average by name, for rank 0 to save."""
        return {name: tensor for name, tensor in model.state_dict().items() if name not in self.base.names}

    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Put what `weights` gave into the model or the moving average."""
        model.load_state_dict(weights, strict=not self.base.names)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's whole state, for rank 0 to save."""
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Put what `optimizer_state` gave into the optimizer."""
        layout.load_optimizer_state(self.optimizer, state)

    def _norm(self) -> Tensor:
        """Norm of the whole gradient."""
        return nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def _healthy(self) -> bool:
        """Whether every weight is finite, and what the optimizer remembers.

        Where an update is a sign or a quotient, as Lion's and Adagrad's, a state of NaN or infinity leaves the weights
        as they are, from then on.
        """
        if self.scaler is not None and self.scaler.get_scale() < LEAST_SCALE:  # it has left out every step for long
            return False
        remembered = (value for state in self.optimizer.state.values() for value in state.values())
        looked_at = [*self._parameters, *(v for v in remembered if isinstance(v, Tensor) and v.is_floating_point())]
        if torch.stack([norm.float() for norm in foreach_norm(looked_at)]).sum().isfinite():
            return True
        return all(bool(one.isfinite().all()) for one in looked_at)  # the squares alone may have been too large

    def _note(self, batch: Batch, total: Tensor, weight_sum: Tensor | None) -> None:
        """Keep a step's sums for the next log line, without looking at them."""
        self.accumulator.steps.append(batch.step)
        self.accumulator.losses.append(total)
        self.accumulator.weights.append(
            float(sum(micro.size for micro in batch.micros)) if weight_sum is None else weight_sum
        )

    def _is_bad(self, total: Tensor) -> bool:
        """Whether the loss or the gradient of this step is not finite, on any rank."""
        size = total
        if self.scaler is None:  # which looks at the gradient itself, and overflows at times where nothing is wrong
            norms = foreach_norm([p.grad for p in self._parameters if p.grad is not None])
            size = torch.stack(norms).sum() + total.sum()
        (size,) = sum_over_ranks([size], self.ranks.world_size)
        return not bool(size.isfinite())

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Gradients of a rank's micro-batches; the sums of its losses and, where samples weigh differently, weights."""
        self._seed(batch.step, self.ranks.rank)
        totals, weight_sums = [], []
        factor = self.ranks.world_size / batch.size
        last = len(batch.micros) - 1
        carried = self.reduction.carried
        if carried is not None:
            carried.grad = None
        for i, micro in enumerate(batch.micros):
            pulse.batches += 1
            travels = i == last and carried is not None
            with ALWAYS if travels or carried is None else self.forward.no_sync():
                values, weights, terms, carrying = self._run(micro.inputs, micro.targets)
                if micro.size < len(values):  # a placeholder, or a loss that returned more rows
                    values, weights = values[: micro.size], None if weights is None else weights[: micro.size]
                totals.append(sum_losses(values, terms, micro.size))
                if weights is not None:
                    weight_sums.append(weights.detach().sum())
                self._differentiate(values, factor, carrying, self.reduction.payload(weight_sums) if travels else None)
        if carried is not None:
            self.reduction.received = carried.grad
        total = totals[0] if last == 0 else torch.stack(totals).sum(0)
        if not weight_sums:
            return total, None
        return total, weight_sums[0] if last == 0 else torch.stack(weight_sums).sum()

    def _run(self, inputs: Any, targets: Any) -> Learned:
        """What the task says of a micro-batch."""
        if self.settings.channels_last:
            inputs = layout.channels_last(inputs)
        if self._wrapped:
            return self.forward(inputs, targets)
        values, weights, terms = self._losses(self.forward, inputs, targets)
        return values, weights, stack_terms(self.task, terms) if terms else None, None

    def _differentiate(
        self, values: Tensor, factor: float, carrying: Tensor | None = None, payload: Tensor | None = None
    ) -> None:
        """Add the gradient of factor * sum(values), and `payload` to that of the tensor that carries it.

        The engine takes the factor of each value as it is: a sum and two products less for it to run back through.
        """
        share = values.new_full(values.shape, factor)
        if self.scaler is not None:
            share = self.scaler.scale(share)
        roots: tuple[Tensor, ...] = (values,)
        shares: tuple[Tensor, ...] = (share,)
        if carrying is not None and payload is not None:
            roots, shares = (values, carrying), (share, payload)
        # What torch.autograd.backward ends with; its checks before take 30 us, a twentieth of a small model's step.
        engine_run_backward(roots, shares, False, False, (), allow_unreachable=True, accumulate_grad=True)

    def _seed(self, step: int, rank: int) -> None:
        """Dropout as a function of (seed, step, rank)."""
        key = derive(self.settings.seed, DROPOUT, step, rank) >> 1
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(key)


def sum_losses(values: Tensor, terms: Tensor | None, size: int) -> Tensor:
    """The sum of the losses of `size` samples, and behind it those of the terms where a task names some."""
    total = values.detach().sum()
    return total if terms is None else torch.cat([total[None], terms[:size].sum(0).to(total.dtype)])
