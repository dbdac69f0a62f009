"""Batches that are copied beside the computation."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from launcher.batching import loading, transfer
from launcher.batching.transfer import copied_aside, copy_queue
from launcher.data import DatasetSplit

CPU = torch.device("cpu")


class _Queues:
    """In the place of the two queues of a GPU: writes down what is asked of them."""

    def __init__(self):
        self.said, self.inside = [], False

    @contextlib.contextmanager
    def entered(self, queue):
        self.inside = True
        yield
        self.inside = False

    def record_event(self):
        assert self.inside
        self.said.append("mark")
        return f"event {self.said.count('mark')}"

    def computing(self, device):
        assert not self.inside, "in here that would be the queue of the copies"
        return SimpleNamespace(wait_event=lambda event: self.said.append(f"wait for {event}"))


def test_a_batch_is_copied_aside_and_the_computation_waits_for_it(monkeypatch):
    """The same code as on a GPU: copy, mark, wait for the mark, lend; then what is computed with it."""
    queues, real = _Queues(), transfer.to_device
    said = queues.said

    def copied(tree, device):
        said.append("copy" if queues.inside else "copy at once")
        return real(tree, device)

    monkeypatch.setattr(transfer, "to_device", copied)
    monkeypatch.setattr(transfer, "copy_queue", lambda device: queues)
    monkeypatch.setattr(torch.cuda, "stream", queues.entered)
    monkeypatch.setattr(torch.cuda, "current_stream", queues.computing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda one, queue: said.append(f"lend {tuple(one.shape)}"))
    part = DatasetSplit(list(range(4)), prepare=lambda inputs: said.append("prepare") or inputs)
    loader = _Batches([({"x": torch.ones(2, 3)}, torch.tensor([1, 2])), ({"x": torch.zeros(1, 3)}, torch.tensor([3]))])
    found = []
    for inputs, targets in loading.prepared(part, loader, CPU):
        said.append("compute")
        found.append((inputs["x"], targets))
    first = ["copy", "mark", "wait for event 1", "lend (2, 3)", "lend (2,)", "prepare", "compute"]
    second = ["copy", "mark", "wait for event 2", "lend (1, 3)", "lend (1,)", "prepare", "compute"]
    assert said == [*first, *second]
    assert torch.equal(found[0][0], torch.ones(2, 3)) and found[1][1].tolist() == [3]
    said.clear()
    monkeypatch.setattr(transfer, "copy_queue", copy_queue)
    list(loading.prepared(part, loader, CPU))
    assert said == ["copy at once", "prepare"] * 2


class _Batches(list):
    num_workers = 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_batch_is_whole_when_it_is_computed_with():
    device = torch.device("cuda:0")
    busy = torch.randn(4096, 4096, device=device)
    for i in range(20):
        for _ in range(5):
            busy = busy @ busy / 64  # the computation lags behind
        batch = copied_aside(torch.full((1 << 22,), float(i)), device)
        total = batch.double().sum()
        del batch
        assert total.item() == i * (1 << 22)
