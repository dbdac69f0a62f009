"""Updates that have the same bits on any number of devices."""

from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.batching.stream import Batch
from launcher.distributed.pulse import pulse
from launcher.training import layout
from launcher.training.trainer import Carrier, Trainer, sum_losses


class ExactTrainer(Trainer):
    """Updates that have the same bits on any number of devices that divides the number of shards.

    The global batch is cut into a fixed number of shards, whatever the devices. Each shard has a gradient and dropout
    of its own; the gradients are gathered and summed in the order of the shards. It costs a copy of the gradient per
    shard, and a gather where DDP reduces while it computes.
    """

    def _wrap(self, model: Any) -> Any:
        if self.accelerator.mixed_precision == "no":
            return model
        self._wrapped = True
        return self.accelerator.prepare_model(Carrier(model, self.task).to(self.device), evaluation_mode=True)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rows = []
        weighted = False
        for shard, micros in groupby(batch.micros, key=lambda micro: micro.shard):
            self._seed(batch.step, shard)
            for parameter in self._parameters:
                parameter.grad = None
            total = torch.zeros(1 + len(self.task.terms), device=self.device)
            weight_sum = torch.zeros((), device=self.device)
            for micro in micros:
                pulse.batches += 1
                values, weights, terms, _ = self._run(micro.inputs, micro.targets)
                values = values[: micro.size]
                total += sum_losses(values, terms, micro.size)
                if weights is not None:
                    weighted = True
                    weight_sum += weights[: micro.size].detach().sum()
                self._differentiate(values, 1 / batch.size)
            own = self.reduction.wants_to_stop, self.reduction.seconds
            vote, seconds = (torch.full_like(weight_sum, float(number)) for number in own)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
            told = torch.cat([total, torch.stack([weight_sum, vote, seconds])])
            rows.append(torch.cat([*(g.flatten() for g in gradients), told]))
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
        *gradient, total, weight_sum, votes = summed.split([*(p.numel() for p in self._parameters), len(total), 1, 2])
        for parameter, part in zip(self._parameters, gradient, strict=True):
            parameter.grad = layout.like(parameter, part.view(parameter.shape))
        self.reduction.votes = votes / (len(others) + 1)
        return total if self.task.terms else total[0], weight_sum[0] if weighted else None

    def _note(self, batch: Batch, total: Tensor, weight_sum: Tensor | None) -> None:
        """The sums are those of all shards already: rank 0 keeps them for all."""
        # Not torch.tensor: it is made on the host, and the copy waits for the device.
        weight = total.new_full((), batch.size) if weight_sum is None else weight_sum
        factor = float(self.ranks.rank == 0)
        self.accumulator.steps.append(batch.step)
        self.accumulator.losses.append(total * factor)
        self.accumulator.weights.append(weight * factor)
