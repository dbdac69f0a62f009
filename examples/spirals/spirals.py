"""A project of one's own: data, model and loss beside a conf/ directory, trained by the installed launcher."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.data import Data, TensorSplit
from launcher.data.source import split_three


def jitter(raw: Tensor, uniforms: Tensor) -> Tensor:
    """Move each point a little. The uniforms [b, 2] belong to the sample: any number of GPUs moves it alike."""
    return raw + 0.05 * (uniforms - 0.5)


def load(arms: int, points: int, turns: float, noise: float, test: float, validation: float, split_seed: int) -> Data:
    """Points on interleaved spirals, to be told apart by their arm.

    Args:
        arms: Spirals, at least 2: the classes.
        points: Points of each.
        turns: How often each winds around the centre.
        noise: Standard deviation of a point's distance from its spiral.
        test: Share of the points for the test part.
        validation: Share of the rest for the validation part.
        split_seed: Of the points and of the split.

    Raises:
        ConfigError: There are fewer than two arms.
    """
    if arms < 2:
        raise ConfigError(f"data.arms={arms}: one spiral cannot be told from another; at least 2.")
    generator = torch.Generator().manual_seed(split_seed)
    labels = torch.arange(arms).repeat_interleave(points)
    radius = torch.rand(arms * points, generator=generator).sqrt()
    angle = 2 * math.pi * (turns * radius + labels / arms)
    inputs = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    inputs += noise * torch.randn(inputs.shape, generator=generator)
    kept, chosen_by, held_out = split_three(len(labels), test, validation, split_seed, labels)
    return Data(
        name="spirals",
        task="classification",
        input_shape=(2,),
        num_outputs=arms,
        train=TensorSplit(inputs[kept], labels[kept], augment=jitter, draws=2),
        validation=TensorSplit(inputs[chosen_by], labels[chosen_by]),
        test=TensorSplit(inputs[held_out], labels[held_out]),
        class_names=[f"arm {arm}" for arm in range(arms)],
    )


class Waves(nn.Module):
    """A point's sines and cosines at random frequencies (Rahimi and Recht, 2007), then two layers.

    Args:
        in_features: Numbers per point; filled in from the data.
        num_classes: Likewise.
        frequencies: How many random frequencies.
        width: Of the hidden layer.
        scale: Standard deviation of the frequencies.
    """

    def __init__(self, in_features: int, num_classes: int, frequencies: int, width: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(in_features, frequencies))
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.GELU(), nn.Linear(width, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        """Scores [b, num_classes] of points [b, in_features]."""
        phases = points @ self.frequencies
        return self.layers(torch.cat([phases.sin(), phases.cos()], 1))


class Hesitant(nn.Module):
    """Cross-entropy that rewards doubt (Pereyra et al., 2017, https://arxiv.org/abs/1701.06548).

    Args:
        doubt: What the entropy of the predicted distribution counts, at least 0; 0 is cross-entropy.
    """

    def __init__(self, doubt: float) -> None:
        super().__init__()
        self.doubt = doubt

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss [b] of scores [b, num_classes] and classes [b]: one per sample, so that any mean of them is exact."""
        logs = scores.log_softmax(1)
        entropy = -(logs.exp() * logs).sum(1)
        return F.nll_loss(logs, targets, reduction="none") - self.doubt * entropy
