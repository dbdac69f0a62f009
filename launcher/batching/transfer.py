"""Copies of batches between processes and to a device."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from launcher.core.compat import tree_map_only

SMALL = 1 << 15  # bytes of a tensor that a process sends as they are: shared memory is talked about for 0.2 ms each
PLAIN = {  # types that NumPy has too
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32,
    torch.float64,
}  # fmt: skip


def collate_to_send(samples: Any) -> Any:
    """A batch as a process sends it: `to_device` makes tensors of the arrays."""
    return _each(default_collate(samples), Tensor, _smaller)


def _smaller(tensor: Tensor) -> Tensor | np.ndarray:
    small = type(tensor) is Tensor and tensor.nbytes <= SMALL and tensor.dtype in PLAIN
    return tensor.numpy() if small and tensor.layout is torch.strided and not tensor.requires_grad else tensor


class CopyQueue:
    """A second queue of a GPU, in which a batch is copied while the first one still computes the step before.

    On the queue of the computation itself a copy waits for all that was asked of it before, pinned memory or not.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    @staticmethod
    @cache
    def of(device: torch.device) -> "CopyQueue | None":
        """The one of a device; None where nothing is queued, on a CPU, whose copies are there when they are made."""
        return CopyQueue(device) if device.type == "cuda" else None

    def entered(self) -> AbstractContextManager[Any]:
        """Let what is asked of the device in here go into this queue."""
        return torch.cuda.stream(self.stream)

    def computing(self) -> Any:
        """The queue that computes."""
        return torch.cuda.current_stream(self.device)

    def lend(self, tensor: Tensor, queue: Any) -> None:
        """Keep a tensor's memory from being used again here before what `queue` does with it is done."""
        tensor.record_stream(queue)


def copied_aside(tree: Any, device: torch.device, queue: CopyQueue | None) -> Any:
    """What `to_device` gives, copied beside the computation, which waits for it in its queue before it goes on.

    Args:
        tree: As for `to_device`.
        device: Where to put it.
        queue: The queue for it; None copies at once.
    """
    if queue is None:
        return to_device(tree, device)
    with queue.entered():
        found = to_device(tree, device)
        arrived = queue.stream.record_event()
    computing = queue.computing()
    computing.wait_event(arrived)
    _each(found, Tensor, lambda tensor: queue.lend(tensor, computing))
    return found


def to_device(tree: Any, device: torch.device) -> Any:
    """Put every tensor of a pytree on the device; from pinned memory this process does not wait for the copy.

    Args:
        tree: Of tensors, or of NumPy arrays, of which they are made.
        device: Where to put them.
    """

    def put(one: Tensor | np.ndarray) -> Tensor:
        tensor = one if isinstance(one, Tensor) else torch.from_numpy(one)
        if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    return _each(tree, (Tensor, np.ndarray), put)


def _each(tree: Any, kinds: Any, change: Callable[[Any], Any]) -> Any:
    """A pytree with each leaf of some kinds changed."""
    if isinstance(tree, kinds):
        return change(tree)
    if type(tree) in (list, tuple):  # most batches: 2 us in place of the 10 of a walk through a pytree
        return type(tree)(_each(branch, kinds, change) for branch in tree)
    return tree_map_only(kinds, change, tree)
