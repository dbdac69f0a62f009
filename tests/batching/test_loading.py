"""Samples read one by one: what they draw is their own, and the processes that load them stay."""

import contextlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from launcher.batching import loading
from launcher.batching.keys import AUGMENT, derive
from launcher.batching.loading import SeededDataset, _Loader, _open, choose_workers, to_device
from launcher.batching.plan import BatchPlan
from launcher.batching.stream import Stream, in_order
from launcher.data import DatasetSplit, TensorSplit

CPU = torch.device("cpu")
DRAWS = {
    "torch": lambda: torch.rand(()).item(),
    "python": random.random,
    "numpy": np.random.rand,
}


class Drawing(Dataset):
    """Draws from some generators, the last of them at one sample alone; counts what it was asked."""

    def __init__(self, names, rare=None, size=20):
        self.names, self.rare, self.size, self.asked = names, rare, size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        found = [DRAWS[name]() for name in self.names]
        found.append(DRAWS[self.rare]() if self.rare and index == 7 else float(index))
        return torch.tensor(found, dtype=torch.float64), index


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
def test_a_generator_seeded_by_initial_seed_does_not_depend_on_the_devices(workers):
    part = DatasetSplit(Asking(()))
    found = []
    for world in (1, 2, 3):
        plan = BatchPlan(20, 10, world, world, 10, 1)
        streams = [Stream(part, plan, 3, rank, CPU, workers) for rank in range(world)]
        every = [micro for stream in streams for batch in stream.batches(0, 2) for micro in batch.micros]
        found.append({int(t): float(x) for micro in every for x, t in zip(micro.inputs, micro.targets, strict=True)})
    assert len(found[0]) == 20 and found[0] == found[1] == found[2]


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
    for kind in (_Loader, lambda *given: torch.utils.data.DataLoader(given[0], batch_sampler=given[1])):
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
    found = [to_device(batch, CPU) for batch in _open(part, samples, named, 1, CPU)]
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


class Slow(Drawing):
    """Takes 5 ms a sample, by a file that is opened when it is first read."""

    file = None

    def __getitem__(self, index):
        self.file = self.file or open(__file__)  # noqa: SIM115
        time.sleep(0.005)
        return super().__getitem__(index)


class Alone(Slow):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


class Together(Slow):
    """Gives several at once, in the time of one."""

    def __getitems__(self, indices):
        time.sleep(0.0001)
        return [super(Slow, self).__getitem__(index) for index in indices]


def test_auto_starts_processes_where_they_help(caplog, monkeypatch):
    """By the time that a batch takes; what it tries leaves no trace on the dataset, nor on the generators."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    cores = len(os.sched_getaffinity(0))
    caplog.set_level("INFO", "launcher")
    for dataset, size, expected in (
        (Drawing(("torch", "python", "numpy")), 4, 0), (Slow(("torch",)), 4, min(8, cores)),
        (Slow((), size=1), 1, min(8, cores)), (Alone(()), 64, 0), (Together(()), 4, 0),
    ):  # fmt: skip
        part, before = DatasetSplit(dataset), torch.initial_seed()
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        for _ in range(2):
            assert choose_workers("auto", part, size) == expected, type(dataset).__name__
        assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
        assert states[2] == np.random.get_state()[1].tolist() and before == torch.initial_seed()
        assert dataset.asked == [] and getattr(dataset, "file", None) is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 5 and "the run's own process: the dataset cannot be sent to another process" in said[3]
    assert f"by {min(8, cores)} processes: to read a batch of 4 takes 2" in said[1], said
    assert choose_workers("auto", TensorSplit(torch.zeros(3, 2), torch.zeros(3)), 2) == 0
    assert choose_workers(3, DatasetSplit(Slow(())), 4) == 3
    for ranks in (cores, 4 * cores):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert choose_workers("auto", DatasetSplit(Slow(())), 4) == 1


@pytest.mark.parametrize("kind", [Drawing, Slow])
def test_auto_gives_the_samples_of_any_number(kind):
    plan = BatchPlan(20, 10, 1, 1, 10, 1)
    found = []
    for workers in (0, "auto"):
        stream = Stream(DatasetSplit(kind(("torch", "python"))), plan, 3, 0, CPU, workers)
        found.append([(m.inputs.tolist(), m.targets.tolist()) for b in stream.batches(0, 4) for m in b.micros])
    assert found[0] == found[1] and len(found[0]) == 4


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


class _Recorded:
    """In the place of loading.Side: writes down what is asked of the two queues of a GPU."""

    def __init__(self, said):
        self.said, self.stream = said, self
        self.inside = False

    def entered(self):
        @contextlib.contextmanager
        def inside():
            self.inside = True
            yield
            self.inside = False

        return inside()

    def record_event(self):
        assert self.inside
        self.said.append("mark")
        return f"event {self.said.count('mark')}"

    def computing(self):
        assert not self.inside, "in here that would be the queue of the copies"
        return SimpleNamespace(wait_event=lambda event: self.said.append(f"wait for {event}"))

    def lend(self, tensor, queue):
        self.said.append(f"lend {tuple(tensor.shape)}")


def test_a_batch_is_copied_in_a_queue_of_its_own_and_the_computation_waits_for_it(monkeypatch):
    """The same code as on a GPU: copy, mark, wait for the mark, lend; then what is computed with it."""
    said = []
    side = _Recorded(said)
    real = loading.to_device

    def copied(tree, device):
        said.append("copy" if side.inside else "copy at once")
        return real(tree, device)

    monkeypatch.setattr(loading, "to_device", copied)
    part = DatasetSplit(list(range(4)), prepare=lambda inputs: said.append("prepare") or inputs)
    loader = _Batches([({"x": torch.ones(2, 3)}, torch.tensor([1, 2])), ({"x": torch.zeros(1, 3)}, torch.tensor([3]))])
    found = []
    for inputs, targets in loading._prepared(part, loader, CPU, side):
        said.append("compute")
        found.append((inputs["x"], targets))
    first = ["copy", "mark", "wait for event 1", "lend (2, 3)", "lend (2,)", "prepare", "compute"]
    second = ["copy", "mark", "wait for event 2", "lend (1, 3)", "lend (1,)", "prepare", "compute"]
    assert said == [*first, *second]
    assert torch.equal(found[0][0], torch.ones(2, 3)) and found[1][1].tolist() == [3]
    said.clear()
    list(loading._prepared(part, loader, CPU, loading.Side.of(CPU)))
    assert said == ["copy at once", "prepare"] * 2


class _Batches(list):
    num_workers = 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_batch_is_whole_when_it_is_computed_with():
    device = torch.device("cuda:0")
    side = loading.Side.of(device)
    busy = torch.randn(4096, 4096, device=device)
    for i in range(20):
        for _ in range(5):
            busy = busy @ busy / 64  # the computation lags behind
        batch = loading.copied_aside(torch.full((1 << 22,), float(i)), device, side)
        total = batch.double().sum()
        del batch
        assert total.item() == i * (1 << 22)
