"""Where torch's deterministic kernels are not wanted although the run has them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_any_order() -> Iterator[None]:
    """Lift the deterministic mode, for sums that are the same in any order: of ones, or on the host in one thread.

    On CUDA the mode refuses histc, which adds up ones by atomic operations. And where it is on, torchmetrics counts n
    samples into m bins by a table of n times m on any device (utilities/data.py, _bincount): 33 GB for 4,096 samples of
    1,001 classes.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
