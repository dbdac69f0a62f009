"""Distillation: a model learns from the scores of a trained one beside the true classes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.losses.per_sample import PerSample
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import Supervised, tensor_of
from launcher.tasks.task import Losses


class Distillation(Supervised):
    """`(1 - share) * loss + share * T^2 * KL(teacher || student)`, both of whose scores are divided by T first.

    Hinton et al., Distilling the Knowledge in a Neural Network (2015), https://arxiv.org/abs/1503.02531. The teacher is
    always in evaluation mode, and sees what the student sees. Logged beside the loss: `hard`, that of the true classes,
    and `soft`.

    Args:
        loss: Of the true classes.
        outputs: Of a classification.
        teacher: From inputs to scores [n, k], such as `launcher.load` gives of a run directory.
        temperature: T > 0; higher ones tell more of the classes that the teacher thinks unlikely.
        share: Of the teacher in the loss, in 0..1.

    Raises:
        ConfigError: The data have no classes, or a number is out of its range.
    """

    terms = ("hard", "soft")

    def __init__(self, loss: PerSample, outputs: Outputs, teacher: nn.Module, temperature: float, share: float) -> None:
        super().__init__(loss, outputs)
        if outputs.task != "classification" or outputs.given != "scores":
            raise ConfigError(
                f"task=distillation: needs the scores of classes, and the data is a {outputs.task} task whose outputs "
                f"are {outputs.given}. Use a classification and loss=cross_entropy, or another task."
            )
        if not temperature > 0:
            raise ConfigError(f"task.temperature is {temperature}: must be above 0, such as 2.")
        if not 0 <= share <= 1:
            raise ConfigError(f"task.share is {share}: must lie in 0..1.")
        if not isinstance(teacher, nn.Module):
            raise ConfigError(f"task.teacher is a {type(teacher).__name__}, not a torch.nn.Module.")
        self.teacher, self.temperature, self.share = teacher.eval().requires_grad_(False), temperature, share

    def train(self, mode: bool = True) -> "Distillation":
        """Change the mode, but not that of the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, model: Any, inputs: Any, targets: Any) -> Losses:
        """The losses of the samples of a batch."""
        return self._both(tensor_of(model(inputs)), inputs, targets)

    def measure(self, model: Any, inputs: Any, targets: Any) -> tuple[Losses, Tensor]:
        """The losses, and scores in the form of `Outputs.scores`."""
        outputs = tensor_of(model(inputs)).float()
        return self._both(outputs, inputs, targets), self.outputs.scores(outputs)

    def _wanted(self, inputs: Any) -> Tensor:
        """The scores of the teacher, else a ConfigError where it was made for other inputs."""
        try:
            return tensor_of(self.teacher(inputs))
        except ConfigError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                f"task.teacher: fails on the inputs of this run ({type(error).__name__}: {error}). Name a run on data "
                "of the same shape."
            ) from error

    def _both(self, outputs: Tensor, inputs: Any, targets: Any) -> Losses:
        with torch.no_grad():
            wanted = self._wanted(inputs)
        if wanted.shape != outputs.shape:
            raise ConfigError(
                f"task.teacher: gives {list(wanted.shape)}, and the model {list(outputs.shape)}: they must have "
                "learned the same classes."
            )
        with torch.autocast(outputs.device.type, enabled=False):
            outputs, wanted = outputs.float(), wanted.float()
            hard, weights = self._losses(outputs, targets)
            student, teacher = ((one / self.temperature).log_softmax(1) for one in (outputs, wanted))
            soft = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * self.temperature**2
            soft = soft if weights is None else soft * weights
        return Losses((1 - self.share) * hard + self.share * soft, weights, {"hard": hard, "soft": soft})
