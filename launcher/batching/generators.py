"""The generators of random numbers that are one for a whole process: torch's, Python's and NumPy's."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from launcher.batching.keys import derive


def seed_generators(seed: int) -> None:
    """Seed the generators of torch, Python and NumPy, the same on every rank: initial weights are drawn from them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(derive(seed) & 0xFFFFFFFF)


@contextmanager
def generators_kept(devices: Sequence[int] = ()) -> Iterator[None]:
    """Put the generators of torch (that of the CPU, and of these GPUs), NumPy and Python back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class TorchGenerator:
    """The generator of torch that CPU tensors are drawn from."""

    def seed(self, key: int) -> None:
        """Seed it for a sample."""
        torch.default_generator.manual_seed(key >> 1)

    def begin(self, key: int) -> None:
        """Remember where it is, so that `has_moved` can tell; it may be seeded, with a key that no device changes."""
        if torch.default_generator.initial_seed() != key >> 1:  # samples may ask for it
            self.seed(key)
        self.before = torch.default_generator.get_state()

    def has_moved(self) -> bool:
        """Whether anything was drawn since `begin`."""
        return not torch.equal(self.before, torch.default_generator.get_state())


@dataclass(eq=False)
class TwinnedGenerator:
    """A generator whose state takes longer to compare than a number drawn from a twin, which moves as it does."""

    module: str  # that samples draw from: a worker gets this object by pickle, and has a module of its own
    twin: Any  # a generator of the same kind
    mask: int  # bits of a key that it takes as its seed

    def seed(self, key: int) -> None:
        """As TorchGenerator.seed."""
        sys.modules[self.module].seed(key & self.mask)

    def begin(self, key: int) -> None:
        """As TorchGenerator.begin."""
        if self.has_moved():  # by somebody else, between two batches
            self.seed(key)
            self.twin.seed(key & self.mask)

    def has_moved(self) -> bool:
        """As TorchGenerator.has_moved."""
        return sys.modules[self.module].random() != self.twin.random()


def process_generators() -> list[TorchGenerator | TwinnedGenerator]:
    """The three of this process."""
    return [
        TorchGenerator(),
        TwinnedGenerator("random", random.Random(), 2**64 - 1),
        TwinnedGenerator("numpy.random", np.random.RandomState(), 2**32 - 1),
    ]
