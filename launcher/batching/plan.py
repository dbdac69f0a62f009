"""The batch plan: the global batch is the unit, each device's share is derived from it."""

import math
from dataclasses import dataclass

from launcher.core.errors import ConfigError

MORE_TO_EVALUATE = 4  # micro-batches that an evaluation takes at once


@dataclass(frozen=True)
class BatchPlan:
    """How the global batches of an epoch are cut for the devices."""

    samples: int  # of the training split, per epoch
    global_size: int  # samples per optimizer update, but for the last update of an epoch
    world_size: int  # number of devices (ranks)
    shards: int  # pieces that a global batch is cut into: one per rank, or a fixed number of canonical ones
    micro_size: int  # most samples that a device sees in one forward and backward
    accumulation_steps: int  # micro-batches per update of a full global batch

    @property
    def per_device_size(self) -> int:
        """Largest share of one device in a full global batch, in samples."""
        return math.ceil(self.global_size / self.shards) * (self.shards // self.world_size)

    def evaluation_size(self, tokens: int | None) -> int:
        """Samples that a device sees at once in an evaluation: more than in a step, since no gradient waits for them.

        But for a language, which has a number of `tokens`: its scores are most of what an evaluation needs.
        """
        return self.micro_size * (MORE_TO_EVALUATE if tokens is None else 1)

    def interval(self, every: int | str | None) -> int:
        """Updates that a setting such as `eval_every` names: a number, `epoch`, or None, which is 0."""
        return self.steps_per_epoch if every == "epoch" else int(every or 0)

    def capped(self, max_per_device: int) -> "BatchPlan":
        """The same plan with smaller micro-batches."""
        return plan_batch(
            self.samples, self.global_size, self.world_size, max_per_device, self.shards if self.canonical else None
        )

    @property
    def canonical(self) -> bool:
        """Whether the shards do not depend on the devices."""
        return self.shards != self.world_size

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

    def share(self, shard: int, size: int) -> tuple[int, int]:
        """First (inclusive) and last (exclusive) position of a shard within a global batch of `size` samples."""
        return size * shard // self.shards, size * (shard + 1) // self.shards

    def micro_sizes(self, shard: int, size: int) -> list[int]:
        """Sizes of a shard's micro-batches in a global batch of `size` samples.

        Every shard has the same number of them, since each is a point where ranks may meet. In a batch with fewer
        samples than shards some are 0: there a rank computes on a placeholder that weighs nothing.
        """
        count = math.ceil(math.ceil(size / self.shards) / self.micro_size)
        first, last = self.share(shard, size)
        share = last - first
        return [share * (i + 1) // count - share * i // count for i in range(count)]

    def smallest(self, steps: int) -> tuple[int, int]:
        """The fewest samples that a device sees at once in the first `steps` updates; a placeholder is one.

        Returns:
            How many, and at which position of the epoch (0-based).
        """
        positions = {0, min(steps, self.steps_per_epoch) - 1}  # the first batches are as large as each other
        sizes = [
            (max(1, min(self.micro_sizes(shard, self.size_of(at)))), at)
            for at in sorted(positions)
            for shard in range(self.shards)
        ]
        return min(sizes)

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


def plan_batch(
    samples: int,
    global_size: int,
    world_size: int,
    max_per_device: int | str | None,
    canonical_shards: int | None = None,
) -> BatchPlan:
    """Derive the per-device batch from the global one.

    Args:
        samples: Training samples per epoch, at least 1. A global batch larger than this is cut down to it.
        global_size: Samples per optimizer update, whatever the devices.
        world_size: Number of devices.
        max_per_device: Most samples a device may see at once; None, or `auto` until it is known: its whole share.
        canonical_shards: Pieces of a global batch that do not depend on the devices; None: one per device.

    Raises:
        ConfigError: The global batch has fewer samples than there are devices, or the devices do not divide the
            canonical shards.
    """
    size = min(global_size, samples)
    shards = canonical_shards or world_size
    if shards % world_size:
        raise ConfigError(
            f"exact_across_devices: canonical_shards={shards} cannot be dealt to {world_size} devices evenly. "
            f"Use a multiple of {world_size}; it must be the same at every number of devices."
        )
    if size < shards:
        what = "canonical shards" if canonical_shards else "devices"
        raise ConfigError(
            f"batch.global_size={global_size}: {size} sample{'s' if size > 1 else ''} per update cannot be shared "
            f"among {shards} {what}. Use batch.global_size={shards} or more"
            + (f" (the training split has {samples} samples)." if size < global_size else f", or fewer {what}.")
        )
    share = math.ceil(size / shards)
    pieces = math.ceil(share / max_per_device) if isinstance(max_per_device, int) else 1
    return BatchPlan(samples, size, world_size, shards, math.ceil(share / pieces), pieces * (shards // world_size))


def scale_learning_rate(rule: str, global_size: int, base_size: int) -> float:
    """Factor on the learning rate for a global batch that differs from the one, of base_size, that it was tuned at.

    The rule is `none`; `linear` (Goyal et al. 2017, arXiv:1706.02677), the usual choice for SGD; or `sqrt`
    (Krizhevsky 2014, arXiv:1404.5997), for adaptive optimizers.
    """
    ratio = global_size / base_size
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
