"""How many processes load samples."""

import os
import random
import re
import time

import numpy as np
import pytest
import torch
from drawing import Drawing

from launcher.batching.plan import BatchPlan
from launcher.batching.stream import Stream
from launcher.batching.workers import choose_workers
from launcher.data import DatasetSplit, TensorSplit

CPU = torch.device("cpu")


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
    found = re.fullmatch(rf"loading +by {min(8, cores)} processes: to read a batch of 4 takes ([\d.]+) ms", said[1])
    assert found and float(found[1]) >= 20, said  # four times 5 ms of sleep, and what a busy machine adds
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
