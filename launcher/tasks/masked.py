"""Masked reconstruction: a model learns without labels, by filling in what was hidden of its inputs."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from launcher.core.errors import ConfigError
from launcher.tasks.supervised import tensor_of
from launcher.tasks.task import Losses, Task


class MaskedReconstruction(Task):
    """The mean squared error of the numbers of a sample that were set to 0 before the model saw it.

    As in denoising autoencoders (Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders,
    2008, https://doi.org/10.1145/1390156.1390294), with the error of hidden numbers alone, as He et al., Masked
    Autoencoders Are Scalable Vision Learners (2021), https://arxiv.org/abs/2111.06377, have it for patches. Training
    hides others in each update, as dropout does; an evaluation hides the same ones of all samples.

    Args:
        share: Of the numbers that are hidden, in 0..1, both excluded.
        input_shape: Of a sample; tokens have none.
    """

    hidden: Tensor

    def __init__(self, share: float, input_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        if input_shape is None:
            raise ConfigError("task=masked: hides numbers, and the samples are tokens. Use other data.")
        if not 0 < share < 1:
            raise ConfigError(f"task.share is {share}: must lie between 0 and 1, such as 0.5.")
        self.share, size = share, math.prod(input_shape)
        self.model_facts = dict.fromkeys(("num_outputs", "num_classes", "out_features"), size)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        self.register_buffer("hidden", order < max(1, round(share * size)), persistent=False)

    def losses(self, model: Any, inputs: Any, targets: Any) -> Losses:
        """The losses of the samples of a batch; the targets count for nothing."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise ConfigError(
                "task=masked: inputs must be one tensor of numbers. Use other data, or a task of your own."
            )
        wanted = inputs.flatten(1)
        hidden = torch.rand_like(wanted) < self.share if self.training else self.hidden.expand_as(wanted)
        found = tensor_of(model(wanted.masked_fill(hidden, 0).view_as(inputs))).flatten(1)
        if found.shape != wanted.shape:
            raise ConfigError(
                f"task=masked: the model gives {list(found.shape)} for inputs {list(inputs.shape)}; it must give a "
                "number for each of theirs. Use a model that takes num_outputs from the run, such as model=mlp."
            )
        error = (found.float() - wanted.float()).square() * hidden
        return Losses(error.sum(1) / hidden.sum(1).clamp(min=1))
