"""Batches that are copied beside the computation."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from launcher.batching import loading, transfer
from launcher.batching.transfer import CopyQueue, copied_aside
from launcher.data import DatasetSplit

CPU = torch.device("cpu")


class _Recorded:
    """In the place of CopyQueue: writes down what is asked of the two queues of a GPU."""

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


def test_a_batch_is_copied_aside_and_the_computation_waits_for_it(monkeypatch):
    """The same code as on a GPU: copy, mark, wait for the mark, lend; then what is computed with it."""
    said = []
    side = _Recorded(said)
    real = transfer.to_device

    def copied(tree, device):
        said.append("copy" if side.inside else "copy at once")
        return real(tree, device)

    monkeypatch.setattr(transfer, "to_device", copied)
    part = DatasetSplit(list(range(4)), prepare=lambda inputs: said.append("prepare") or inputs)
    loader = _Batches([({"x": torch.ones(2, 3)}, torch.tensor([1, 2])), ({"x": torch.zeros(1, 3)}, torch.tensor([3]))])
    found = []
    for inputs, targets in loading.prepared(part, loader, CPU, side):
        said.append("compute")
        found.append((inputs["x"], targets))
    first = ["copy", "mark", "wait for event 1", "lend (2, 3)", "lend (2,)", "prepare", "compute"]
    second = ["copy", "mark", "wait for event 2", "lend (1, 3)", "lend (1,)", "prepare", "compute"]
    assert said == [*first, *second]
    assert torch.equal(found[0][0], torch.ones(2, 3)) and found[1][1].tolist() == [3]
    said.clear()
    list(loading.prepared(part, loader, CPU, CopyQueue.of(CPU)))
    assert said == ["copy at once", "prepare"] * 2


class _Batches(list):
    num_workers = 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_batch_is_whole_when_it_is_computed_with():
    device = torch.device("cuda:0")
    side = CopyQueue.of(device)
    busy = torch.randn(4096, 4096, device=device)
    for i in range(20):
        for _ in range(5):
            busy = busy @ busy / 64  # the computation lags behind
        batch = copied_aside(torch.full((1 << 22,), float(i)), device, side)
        total = batch.double().sum()
        del batch
        assert total.item() == i * (1 << 22)
