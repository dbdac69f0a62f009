"""The tasks of a model(inputs) and a loss(outputs, targets)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from launcher.losses.per_sample import PerSample
from launcher.tasks.outputs import Outputs
from launcher.tasks.task import Losses, Sums, Task


class Supervised(Task):
    """Classes, labels, numbers, tokens or pixels, learned by a loss of outputs and targets."""

    def __init__(self, loss: PerSample, outputs: Outputs) -> None:
        super().__init__()
        self.use(loss)
        self.outputs = outputs

    def use(self, loss: PerSample) -> None:
        """Learn by this loss from now on."""
        self.loss = loss
        self._losses = loss.forward  # of our own wrapper, which nobody hooks: a module's call costs as much as a kernel

    def losses(self, model: Any, inputs: Any, targets: Any) -> Losses:
        """The losses of the samples of a batch."""
        outputs = model(inputs)
        if type(outputs) is not Tensor:
            outputs = tensor_of(outputs)
        kind = outputs.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):  # a loss is in float32, whatever the model is in
                return Losses(*self._losses(outputs.float(), targets))
        return Losses(*self._losses(outputs, targets))

    def measure(self, model: Any, inputs: Any, targets: Any) -> tuple[Losses, Tensor]:
        """The losses, and scores in the form of `Outputs.scores`."""
        outputs = tensor_of(model(inputs)).float()
        with torch.autocast(outputs.device.type, enabled=False):
            return Losses(*self._losses(outputs, targets)), self.outputs.scores(outputs)

    def sums(self, device: torch.device | str) -> Sums:
        """What counts the metrics of an evaluation."""
        return self.outputs.sums(device)


def tensor_of(outputs: Any) -> Any:
    """The logits of a model that gives them among other things, as those of transformers do; else what it gives."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    return getattr(outputs, "logits", outputs)
