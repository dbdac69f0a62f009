"""Samples read one by one, in this process and in others, which stay."""

import multiprocessing
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from drawing import DRAWS, Drawing

from launcher.batching import loading
from launcher.batching.keys import AUGMENT, derive
from launcher.batching.loading import InProcessLoader, SeededDataset, open_loader
from launcher.batching.plan import BatchPlan
from launcher.batching.stream import Stream, in_order
from launcher.batching.transfer import to_device
from launcher.core.errors import ConfigError
from launcher.data import DatasetSplit

CPU = torch.device("cpu")
SAMPLES = {
    "a class": lambda i: (torch.arange(3) + i, i),
    "a class, of NumPy": lambda i: (torch.arange(3) + i, np.int64(i)),
    "a number": lambda i: (torch.arange(3) + i, i / 2),
    "classes and a number": lambda i: (torch.arange(3) + i, i if i < 2 else i / 2),
    "tensors": lambda i: (torch.arange(3) + i, torch.tensor([i, 2])),
    "an array": lambda i: (np.arange(3) + i, i),
    "a dict": lambda i: ({"a": torch.arange(3) + i, "b": i}, i),
    "three": lambda i: (torch.arange(3) + i, i, i),
    "other lengths": lambda i: (torch.arange(3), i)[: 1 + i % 2],
    "other shapes": lambda i: (torch.arange(i), i),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_batches_read_in_this_process_are_those_of_a_data_loader(name):
    """Values, types and errors."""
    samples = [SAMPLES[name](i + 1) for i in range(7)]
    found = []
    for kind in (InProcessLoader, lambda *given: torch.utils.data.DataLoader(given[0], batch_sampler=given[1])):
        try:
            found.append([*kind(samples, [[0, 1, 2], [6, 3, 4, 5]])])
        except (RuntimeError, ValueError) as error:
            found.append(f"{type(error)} {error}")
    assert str(found[0]) == str(found[1]), "with the types"
    torch.testing.assert_close(*found, rtol=0, atol=0) if isinstance(found[0], list) else None


KINDS = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.half, torch.bfloat16, torch.float64, torch.cfloat]


def test_batches_sent_by_a_process_are_those_of_a_data_loader():
    """Of every type, small ones and large ones, nested, beside what is no tensor."""
    samples = [
        ({str(kind): torch.ones(3).mul(i).to(kind) for kind in KINDS}, [torch.arange(30_000) + i, (i / 2, f"{i}")], i)
        for i in range(5)
    ]
    named = [[0, 1, 2], [4, 3]]
    part = DatasetSplit(samples)
    found = [to_device(batch, CPU) for batch in open_loader(part, samples, named, 1, CPU)]
    expected = [*torch.utils.data.DataLoader(samples, batch_sampler=named)]
    assert str(found) == str(expected), "with the types of what holds them"
    tensors, theirs = (torch.utils._pytree.tree_leaves(batches) for batches in (found, expected))
    for mine, other in zip(tensors, theirs, strict=True):
        assert type(mine) is type(other)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype and torch.equal(mine, other)


def _workers():
    return {child.pid for child in multiprocessing.active_children() if child.daemon}


def test_the_processes_of_an_evaluation_stay_for_the_next_one():
    """Also after one that was broken off; another number of batches, or of shares, needs no others."""
    part, before = DatasetSplit(Drawing(())), _workers()
    first = list(in_order(part, 0, 1, 4, CPU, 2))
    assert [t.tolist() for _, t in first] == [[*range(at, at + 4)] for at in range(0, 20, 4)]
    stayed = _workers() - before
    assert len(stayed) == 2
    for inputs, targets in in_order(part, 0, 1, 4, CPU, 2):
        assert torch.equal(inputs, first[0][0]) and targets.tolist() == [0, 1, 2, 3]
        break
    for rank, share in ((0, range(10)), (1, range(10, 20))):
        found = [t for _, targets in in_order(part, rank, 2, 3, CPU, 2) for t in targets.tolist()]
        assert found == [*share]
    assert _workers() - before == stayed
    part.loader = None
    assert not _workers() & stayed, "they end with the part that they read"


def test_python_ends_while_a_loader_has_more_to_give():
    """What is left of the generator at the end of the interpreter starts no thread, for which Python would wait."""
    script = (
        "import torch\n"
        "from launcher.distributed import children\n"
        "kept = children.loaded(torch.utils.data.DataLoader(list(range(9))))\n"
        "next(kept)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


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


@pytest.mark.parametrize("batch", [None, "rubbish", [], {"a": 3}])
def test_a_batch_without_a_tensor_is_refused(batch):
    with pytest.raises(ConfigError, match=f"a batch is a {type(batch).__name__} without a tensor"):
        loading.pair(batch)
