"""Copies of tensors in host memory, for a checkpoint that is written while training goes on."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def own_copy(tensor: Tensor) -> Tensor:
    """A copy on the host that nobody else has, and that `Staging` therefore takes as it is."""
    copied: Any = tensor.detach().to("cpu", copy=True)
    copied.is_own = True
    return copied


class Staging:
    """Host memory into which a state is copied once, the same from save to save.

    Copies from a GPU run as the device comes to them, in order with the updates before and after, and the training
    thread waits for none of them: that takes pinned memory. Who reads them waits once, for what `copy` returns.

    Args:
        pinned: Whether to take pinned memory: for a GPU.
        record: Marks the place in the device's queue that the copies end at; its result has a `synchronize`. None: they
            are there at once, as a CPU's are.
    """

    def __init__(self, pinned: bool = False, record: Callable[[], Any] | None = None) -> None:
        self.pinned, self.record = pinned, record
        self._kept: dict[Any, list[Tensor]] = {}

    @staticmethod
    def for_device(device: torch.device) -> "Staging":
        """For the tensors of a device; where it is a CPU, nothing is queued and nothing pinned."""
        if device.type != "cuda":
            return Staging()
        return Staging(True, lambda: torch.cuda.current_stream(device).record_event())

    def copy(self, tree: Any) -> tuple[Any, Callable[[], None]]:
        """A copy of a state that training does not change any more: tensors contiguous and untied.

        Args:
            tree: A pytree. Of the one before, no copy may be in use any more.

        Returns:
            It, with tensors on the host, and what to call before they are read.
        """
        before, self._kept = self._kept, defaultdict(list)

        def put(tensor: Any) -> Tensor:
            if getattr(tensor, "is_own", False):
                return tensor.contiguous()
            kind = tensor.dtype, tensor.shape
            buffers = before.get(kind)
            buffer = buffers.pop() if buffers else torch.empty(kind[1], dtype=kind[0], pin_memory=self.pinned)
            self._kept[kind].append(buffer)
            return buffer.copy_(tensor.detach(), non_blocking=True)

        copied = torch.utils._pytree.tree_map_only(Tensor, put, tree)
        before.clear()  # what is of no shape any more, such as the losses since the last log line
        return copied, (lambda: None) if self.record is None else self.record().synchronize
