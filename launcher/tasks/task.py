"""What every task has: losses for each sample of a batch, by which a model is trained and measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from launcher.core.errors import ConfigError


class Losses(NamedTuple):
    """What a task says of the n samples of a batch."""

    values: Tensor  # [n], each times the weight of its sample: the loss is sum(values) / sum(weights)
    weights: Tensor | None = None  # [n], >= 0; None: each sample weighs 1
    terms: Mapping[str, Tensor] = {}  # [n] each, under the names in Task.terms, weighted as the values are


class Sums(Protocol):
    """What counts the metrics of a task over any number of batches, on the device."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Count the samples of a batch."""

    def tensors(self) -> list[Tensor]:
        """All counts, in place: those of several ranks are added to each other."""

    def figures(self) -> dict[str, float]:
        """The metrics by name."""


class NoSums:
    """No metrics beside the losses."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Count nothing."""

    def tensors(self) -> list[Tensor]:
        """No tensors."""
        return []

    def figures(self) -> dict[str, float]:
        """No metrics."""
        return {}


class Task(nn.Module):
    """From a model and a batch to losses. A person's own has `losses`, and what else it needs.

    `losses` runs inside the forward that DDP, FSDP and autocast wrap; it may call the model several times. What is
    trained belongs to the model: parameters of the task itself, such as those of a teacher, stay as they are. Its
    random numbers come from torch's generators, which are seeded for each update.

    Attributes:
        terms: Names of the parts of the loss that are logged, as train/NAME and eval/NAME.
        may_be_cut: Whether a batch may be cut although the loss of a sample depends on which others are in it.
        model_facts: What a model is told beside, or in place of, the facts of the data, such as num_outputs.
    """

    terms: tuple[str, ...] = ()
    may_be_cut: bool = False
    model_facts: Mapping[str, Any] = {}

    def losses(self, model: Any, inputs: Any, targets: Any) -> Losses:
        """The losses of the samples of a batch.

        Args:
            model: To be called; in training or evaluation mode, as `self.training` is.
            inputs: Of the samples, as the data source gives them: any pytree of tensors [n, ...].
            targets: The same of what is to be learned; zeros [n] where the data source gives none.
        """
        raise NotImplementedError

    def measure(self, model: Any, inputs: Any, targets: Any) -> tuple[Losses, Any]:
        """The same in an evaluation, and what `sums` counts beside the targets; None: nothing."""
        return self.losses(model, inputs, targets), None

    def sums(self, device: torch.device | str) -> Sums:
        """What counts the metrics of an evaluation."""
        return NoSums()


def stack_terms(task: Task, terms: Mapping[str, Tensor]) -> Tensor:
    """The terms of n samples as [n, k], in the order in which the task names them."""
    return torch.stack([terms[name].detach() for name in task.terms], 1)


def check_task(task: Any, target: str) -> None:
    """Check that an object is a task, else a ConfigError."""
    if not isinstance(task, Task):
        raise ConfigError(f"task._target_: {target} gives a {type(task).__name__}, not a launcher.tasks.task.Task.")
    if type(task).losses is Task.losses:
        raise ConfigError(
            f"task: {type(task).__name__} has no method losses(self, model, inputs, targets), which returns the losses "
            "of a batch."
        )
    if "loss" in task.terms:
        raise ConfigError(
            f"task: {type(task).__name__} has a term 'loss', the name of the whole. Give it another in `terms`."
        )
    trained = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    if trained:
        raise ConfigError(
            f"task: {type(task).__name__} has parameters of its own that are to be trained, such as {trained[0]}. What "
            "is trained belongs to the model; call requires_grad_(False) on what stays as it is."
        )
