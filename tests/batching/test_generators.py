"""The generators that are one for a whole process."""

import random

import numpy as np
import pytest
import torch

from launcher.batching.generators import generators_kept, process_generators, seed_generators

DRAW = {"torch": lambda: torch.rand(()), "python": random.random, "numpy": np.random.rand}


@pytest.mark.parametrize("drawn", range(3))
def test_a_generator_tells_whether_it_alone_has_moved(drawn):
    generators = process_generators()
    for _ in range(3):
        for generator in generators:
            generator.begin(2**63 + 5)
        list(DRAW.values())[drawn]()
        assert [generator.has_moved() for generator in generators] == [i == drawn for i in range(3)]


@pytest.mark.parametrize("name", DRAW)
def test_all_are_seeded_and_put_back(name):
    seed_generators(3)
    first = float(DRAW[name]())
    with generators_kept():
        DRAW[name]()
    second = float(DRAW[name]())
    seed_generators(3)
    assert [float(DRAW[name]()) for _ in range(2)] == [first, second]
