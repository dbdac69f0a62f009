"""What samples draw is their own, whatever batch they are read in."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from drawing import DRAWS, Drawing

from launcher.batching.keys import AUGMENT, derive
from launcher.batching.plan import BatchPlan
from launcher.batching.seeded_dataset import SeededDataset
from launcher.batching.stream import Stream
from launcher.data import DatasetSplit

CPU = torch.device("cpu")


def _expected(dataset, epoch, number):
    """The draws of generators that are all seeded for this sample, as a person would write it."""
    key = derive(3, AUGMENT, epoch, number)
    torch.manual_seed(key >> 1)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    return dataset[number % len(dataset)][0]


@pytest.mark.parametrize("rare", [None, *DRAWS])
@pytest.mark.parametrize("names", [(), ("torch",), ("python",), ("numpy",), ("torch", "python", "numpy")], ids=str)
def test_each_sample_draws_what_it_would_draw_alone(names, rare):
    """Also where a generator is first drawn from in the middle of the third batch, and in whatever batches they are."""
    for cut in (4, 5, 20):
        seeded = SeededDataset(Drawing(names, rare), partial(derive, 3, AUGMENT))
        for epoch in (0, 1):
            order = np.random.RandomState(epoch).permutation(20) + 20 * epoch  # a number above the size comes again
            order = order.tolist()
            for at in range(0, 20, cut):
                torch.rand(3), random.random(), np.random.rand()  # whatever else a process draws
                found = seeded.__getitems__((epoch, order[at : at + cut]))
                for (values, index), number in zip(found, order[at : at + cut], strict=True):
                    assert index == number % 20
                    assert torch.equal(values, _expected(seeded.dataset, epoch, number))


def test_what_draws_nothing_is_read_once_and_whole_where_it_can_be():
    plain = SeededDataset(Drawing(()), partial(derive, 3, AUGMENT))
    for _ in range(3):
        plain.__getitems__((0, [*range(5)]))
    assert plain.dataset.asked == [*range(5)] * 3 and plain.drawing == []
    drawing = SeededDataset(Drawing(("torch",)), partial(derive, 3, AUGMENT))
    for _ in range(3):
        drawing.__getitems__((0, [*range(5)]))
    assert drawing.dataset.asked == [*range(5)] * 4, "the first batch once more"

    class Whole(Drawing):
        def __getitems__(self, indices):
            return [("whole", index) for index in indices]

    assert SeededDataset(Whole(()), partial(derive, 3, AUGMENT)).__getitems__((0, [0, 1]))[1] == ("whole", 1)


class Asking(Drawing):
    """Seeds a generator of its own by torch.initial_seed(), as many do."""

    def __getitem__(self, index):
        return torch.rand((), generator=torch.Generator().manual_seed(torch.initial_seed() % 2**32 + index)), index


@pytest.mark.parametrize("workers", [0, 2])
def test_initial_seed_of_torch_does_not_depend_on_the_devices(workers):
    part = DatasetSplit(Asking(()))
    found = []
    for world in (1, 2, 3):
        plan = BatchPlan(20, 10, world, world, 10, 1)
        streams = [Stream(part, plan, 3, rank, CPU, workers) for rank in range(world)]
        every = [micro for stream in streams for batch in stream.batches(0, 2) for micro in batch.micros]
        found.append({int(t): float(x) for micro in every for x, t in zip(micro.inputs, micro.targets, strict=True)})
    assert len(found[0]) == 20 and found[0] == found[1] == found[2]
