"""The batch plan: the global batch is the unit, each device's share is derived from it."""

import math
from dataclasses import dataclass

from launcher.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How the global batches of an epoch are cut for the devices.

    Attributes:
        samples: Training samples per epoch.
        global_size: Samples per optimizer update, but for the last update of an epoch.
        world_size: Number of devices (ranks).
        micro_size: Most samples a device sees in one forward and backward.
        accumulation_steps: Micro-batches per update of a full global batch.
    """

    samples: int
    global_size: int
    world_size: int
    micro_size: int
    accumulation_steps: int

    @property
    def per_device_size(self) -> int:
        """Largest share of one device in a full global batch, in samples."""
        return math.ceil(self.global_size / self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates per epoch; the last one takes what is left."""
        return math.ceil(self.samples / self.global_size)

    def size_of(self, step_in_epoch: int) -> int:
        """Samples in the global batch at a position of the epoch (0-based)."""
        return min(self.global_size, self.samples - step_in_epoch * self.global_size)

    def samples_seen(self, step: int) -> int:
        """Samples in the first `step` updates of a run."""
        epochs, position = divmod(step, self.steps_per_epoch)
        return epochs * self.samples + position * self.global_size

    def share(self, rank: int, size: int) -> tuple[int, int]:
        """First (inclusive) and last (exclusive) position of a rank within a global batch of `size` samples."""
        return size * rank // self.world_size, size * (rank + 1) // self.world_size

    def micro_sizes(self, rank: int, size: int) -> list[int]:
        """Sizes of a rank's micro-batches in a global batch of `size` samples.

        Every rank has the same number of them, since each is a point where ranks may meet. In a batch with fewer
        samples than ranks some are 0: such a rank computes on a placeholder that weighs nothing.
        """
        count = math.ceil(math.ceil(size / self.world_size) / self.micro_size)
        first, last = self.share(rank, size)
        share = last - first
        return [share * (i + 1) // count - share * i // count for i in range(count)]

    def __str__(self) -> str:
        """The plan in one line, as it is printed at the start of a run."""
        devices = f"{self.world_size} device{'s' if self.world_size > 1 else ''}"
        ragged = self.global_size % self.world_size or self.per_device_size % self.micro_size
        last = self.samples % self.global_size
        return (
            f"{self.global_size} samples per update = {devices} x {self.accumulation_steps} micro-batch"
            f"{'es' if self.accumulation_steps > 1 else ''} of {'at most ' if ragged else ''}{self.micro_size}"
            f", {self.steps_per_epoch} updates per epoch" + (f", the last of {last} samples" if last else "")
        )


def plan_batch(samples: int, global_size: int, world_size: int, max_per_device: int | None) -> BatchPlan:
    """Derive the per-device batch from the global one.

    Args:
        samples: Training samples per epoch, at least 1. A global batch larger than this is cut down to it.
        global_size: Samples per optimizer update, whatever the devices.
        world_size: Number of devices.
        max_per_device: Most samples a device may see at once; None: its whole share.

    Raises:
        ConfigError: The global batch has fewer samples than there are devices.
    """
    size = min(global_size, samples)
    if size < world_size:
        raise ConfigError(
            f"batch.global_size={global_size}: {size} sample{'s' if size > 1 else ''} per update cannot be shared "
            f"among {world_size} devices. Use batch.global_size={world_size} or more"
            + (f" (the training part has {samples} samples)." if size < global_size else ", or fewer devices.")
        )
    share = math.ceil(size / world_size)
    accumulation = math.ceil(share / max_per_device) if max_per_device else 1
    return BatchPlan(samples, size, world_size, math.ceil(share / accumulation), accumulation)


def scale_learning_rate(rule: str, global_size: int, base_size: int) -> float:
    """Factor on the learning rate for a global batch that differs from the one it was tuned at.

    Args:
        rule: `none`; `linear` (Goyal et al. 2017, arXiv:1706.02677), the usual choice for SGD; or `sqrt`
            (Krizhevsky 2014, arXiv:1404.5997), for adaptive optimizers.
        global_size: Samples per update in this run.
        base_size: Samples per update that the learning rate was tuned at.
    """
    ratio = global_size / base_size
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
