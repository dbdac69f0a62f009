"""Mixup and cutmix: each training image is mixed with its neighbour in the global batch, and so is its loss.

Neighbours are the samples at positions 2 i and 2 i + 1 of a global batch, whatever devices they are on; the last of
an odd batch has none and stays as it is. How much is mixed is one draw per global batch. Both are functions of (seed,
step): the same on any number of devices, and after a resume.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching.keys import MIX, derive
from launcher.batching.stream import Batch, MicroBatch, Stream, first_sample
from launcher.core.errors import ConfigError
from launcher.data.source import Data
from launcher.losses.per_sample import PerSample
from launcher.tasks.supervised import Supervised
from launcher.tasks.task import Task

Box = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Mixing:
    """How a global batch is mixed."""

    alpha: float  # of mixup's Beta(alpha, alpha); 0: no mixup (Zhang et al. 2017, arXiv:1710.09412)
    cutmix_alpha: float  # the same of cutmix (Yun et al. 2019, arXiv:1905.04899)
    prob: float  # share of the global batches that are mixed at all, in [0, 1]
    switch_prob: float  # where both are on, share of these that get cutmix, in [0, 1]

    def draw(self, seed: int, step: int, height: int, width: int) -> tuple[float, Box | None]:
        """What happens to the global batch of a step, of images of height x width pixels.

        Returns:
            The share in [0, 1] that stays of each sample (1: nothing is mixed), and for cutmix the box that comes from
            the neighbour.
        """
        random = np.random.default_rng(derive(seed, MIX, step))
        mixed, switch = random.random(2)
        if mixed >= self.prob:
            return 1.0, None
        if not self.cutmix_alpha or (self.alpha and switch >= self.switch_prob):
            return float(random.beta(self.alpha, self.alpha)), None
        half = 0.5 * math.sqrt(1 - random.beta(self.cutmix_alpha, self.cutmix_alpha))
        sides = []
        for side in (height, width):
            centre, reach = int(random.integers(side)), int(half * side)
            sides.append(slice(max(centre - reach, 0), min(centre + reach, side)))
        rows, columns = sides
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return 1 - area / (height * width), (rows, columns)


@dataclass(slots=True)
class MixedTargets:
    """Targets of mixed samples."""

    targets: Tensor  # [n] classes of the samples
    neighbours: Tensor  # [n] classes of what they were mixed with
    share: float  # that is left of each sample, in [0, 1]

    def __len__(self) -> int:
        return len(self.targets)


class MixedLoss(PerSample):
    """Per-sample losses that also take mixed targets: for cross-entropy, that with the mixed probabilities.

    Cross-entropy is linear in the probabilities of the target, so the mean of two losses is the loss of the mean. The
    weights of the classes are mixed alike.
    """

    def forward(self, outputs: Tensor, targets: Tensor | MixedTargets) -> tuple[Tensor, Tensor | None]:
        """Values [n] and weights [n], or None for 1, as PerSample gives them."""
        if not isinstance(targets, MixedTargets):
            return super().forward(outputs, targets)
        values, weights = super().forward(outputs, targets.targets)
        others, their_weights = super().forward(outputs, targets.neighbours)
        if weights is not None and their_weights is not None:
            weights = torch.lerp(their_weights, weights, targets.share)
        return torch.lerp(others, values, targets.share), weights


class MixedStream(Stream):
    """The batches of a rank, mixed: each micro-batch is read with the neighbours at its two ends, at most one each."""

    def __init__(self, mixing: Mixing, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.mixing = mixing

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's batches of the steps first_step (inclusive) to last_step (exclusive)."""
        for batch in super().batches(first_step, last_step):
            for micro, (first, last) in zip(batch.micros, self._ranges(batch.size), strict=True):
                self._mix(batch, micro, first, last)
            yield batch

    def _ranges(self, size: int) -> Iterator[tuple[int, int]]:
        """First (inclusive) and last (exclusive) position of each micro-batch in a global batch of `size` samples."""
        first, _ = self.plan.share(self.shard, size)
        for micro in self.plan.micro_sizes(self.shard, size):
            yield first, first + micro
            first += micro

    def positions_of(self, step_in_epoch: int) -> tuple[np.ndarray, list[int]]:
        """As those of a Stream, each micro-batch beginning at an even position and ending behind an odd one."""
        size = self.plan.size_of(step_in_epoch)
        start = step_in_epoch * self.plan.global_size
        parts, sizes = [], []
        for first, last in self._ranges(size):
            even, odd = first - first % 2, min(last + last % 2, size)
            placeholder = first == last
            parts.append(np.array([start]) if placeholder else np.arange(start + even, start + odd))
            sizes.append(0 if placeholder else odd - even)
        return np.concatenate(parts), sizes

    def _mix(self, batch: Batch, micro: MicroBatch, first: int, last: int) -> None:
        """Mix what was read with the neighbours, and keep the positions first (inclusive) to last (exclusive)."""
        micro.size = last - first
        if first == last:  # a placeholder
            return
        inputs, targets = micro.inputs, micro.targets
        height, width = inputs.shape[-2:] if inputs.dim() > 3 else (1, 1)
        share, box = self.mixing.draw(self.seed, batch.step, height, width)
        own = slice(first % 2, first % 2 + micro.size)
        micro.inputs, micro.targets = inputs[own], targets[own]
        if share == 1:
            return
        neighbours = torch.arange(own.start, own.stop, device=inputs.device).bitwise_xor_(1).clamp_(max=len(inputs) - 1)
        if box is None:
            micro.inputs = inputs[neighbours].lerp_(micro.inputs, share)
        else:
            micro.inputs = micro.inputs.clone()
            micro.inputs[..., box[0], box[1]] = inputs[..., box[0], box[1]][neighbours]
        micro.targets = MixedTargets(micro.targets, targets[neighbours], share)


def mixed(settings: Mapping[str, Any], data: Data, task: Task) -> Callable[..., Stream]:
    """The kind of stream that the settings `mixup` ask for, whose targets the loss of the task then takes.

    Raises:
        ConfigError: The data have no classes, or are nothing that can be mixed.
    """
    mixing = Mixing(**settings)
    if not mixing.alpha and not mixing.cutmix_alpha:
        return Stream
    name = "mixup.alpha" if mixing.alpha else "mixup.cutmix_alpha"
    if not isinstance(task, Supervised):
        raise ConfigError(f"{name}: the task {type(task).__name__} takes no mixed classes. Set it to 0.")
    if data.task != "classification":
        raise ConfigError(f"{name}: data={data.name} is a {data.task} task; only classes can be mixed. Set it to 0.")
    if mixing.cutmix_alpha and len(data.input_shape) != 3:
        raise ConfigError(
            f"mixup.cutmix_alpha: data={data.name} gives inputs of shape {list(data.input_shape)}, which are no images "
            "[channels, height, width] to cut. Set it to 0; mixup.alpha works on any numbers."
        )
    inputs, _ = first_sample(data.train)
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"{name}: data={data.name} gives inputs in a {type(inputs).__name__}; only one tensor of numbers can be "
            "mixed. Set it to 0."
        )
    if not inputs.is_floating_point():
        raise ConfigError(f"{name}: data={data.name} gives whole numbers, which cannot be mixed. Set it to 0.")
    task.use(MixedLoss(task.loss.loss, task.loss.task))
    return partial(MixedStream, mixing)
