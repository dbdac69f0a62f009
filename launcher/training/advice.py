"""What to do about an error of a step: said beside it, or in its place."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.batching.plan import BatchPlan
from launcher.core.errors import Explained, explained_kernels, is_out_of_memory
from launcher.training.trainer import Trainer


@contextmanager
def advice(plan: BatchPlan, trainer: Trainer) -> Iterator[None]:
    """Say what to do about an error of the device's memory, of DDP's, or of kernels that are not deterministic."""
    try:
        with explained_kernels():
            yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            size = max(1, plan.micro_size // 2)
            error.add_note(f"Out of memory: use batch.max_per_device={size}, or auto. The result stays the same.")
            raise
        text = str(error)
        if found := re.search(r"did not receive grad for rank \d+: ([\d ]+)", text):
            names = [name for name, one in trainer.model.named_parameters() if one.requires_grad]
            unused = ", ".join(names[int(index) - 1] for index in found[1].split()[:20])  # the first is what is carried
            if "static_graph" in text:
                how = "strategy.static_graph=true is for steps that all use the same: say false, and"
            else:
                how = "Several processes wait for them: say"
            raise Explained(
                f"a step does not use all parameters: {unused} had no gradient. {how} "
                "strategy.find_unused_parameters=true, or freeze those that no step uses."
            ) from error
        if "ready only once" in text:
            raise Explained(
                "a step uses parameters twice, in a way that DDP does not follow (checkpoints within checkpoints, or "
                f"use_reentrant=True): say strategy.static_graph=true. ({' '.join(text.split())[:200]} ...)"
            ) from error
        raise
