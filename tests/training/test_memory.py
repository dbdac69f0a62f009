"""Memory counted on fake tensors, beside what PyTorch's own profiler sees the allocator give in real updates."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from launcher.models.cnn import CNN
from launcher.models.mlp import MLP
from launcher.optimizers.optimizer import build_optimizer
from launcher.tasks.supervised import Supervised
from launcher.training import memory

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.001}
IMAGE = (1, 3, 32, 32)
BUILD = {
    "mlp": lambda: MLP(IMAGE[1:], 10, [700, 300], "relu", 0.1),
    "cnn": lambda: CNN(IMAGE[1:], 10, [16, 32], 32, 0.1),
}


class Loss(nn.Module):
    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none"), None


def counted(build, size, micro_batches=1, precision="no", average=False, freeze=()):
    fake = memory.FakeTensorMode(allow_non_fake_inputs=True)
    model = memory.fake_model(build, fake)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(freeze)))
    optimizer = build_optimizer(ADAMW, model, 1.0, True)
    sample = torch.zeros(IMAGE), torch.zeros(1, dtype=torch.int64)
    return memory.count_need(
        model,
        Supervised(Loss(), None),
        optimizer,
        fake,
        sample,
        memory.Workload(size, micro_batches > 1, average, precision),
    )


def allocated(build, size, micro_batches):
    """Most bytes at any moment of a second update and an evaluation on real tensors, of all that they allocate."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, fused=True)

    def losses(count):
        return Loss()(model(torch.zeros(count, *IMAGE[1:])), torch.zeros(count, dtype=torch.int64))[0]

    def update():
        model.train()
        for _ in range(micro_batches):
            losses(size).sum().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            losses(4 * size)
        optimizer.zero_grad(set_to_none=True)

    update()
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *state))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        update()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return kept + peak


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_count_is_what_the_allocator_gives(kind, micro_batches):
    size = 64
    need = counted(BUILD[kind], size, micro_batches)
    measured = allocated(BUILD[kind], size, micro_batches)
    assert need.peak == pytest.approx(measured, rel=0.03), need


def test_a_sample_more_takes_what_it_says():
    """The same growth between any two sizes, so that what fits is known from one."""
    need = counted(BUILD["cnn"], 16)
    assert counted(BUILD["cnn"], 48).peak == pytest.approx(need.peak + 32 * need.per_sample, rel=1e-3)
    assert need.fits(need.peak + 1) == 16 and need.fits(int(need.peak + 10.5 * need.per_sample)) == 26
    assert need.fits(1000) == 0


def test_what_is_frozen_has_no_gradient_and_no_state():
    every, some = counted(BUILD["mlp"], 8), counted(BUILD["mlp"], 8, freeze=["layers.1."])
    frozen = 4 * (3 * 32 * 32 * 700 + 700)
    assert some.weights == every.weights
    assert every.gradients - some.gradients == frozen
    assert abs(every.states - some.states - 2 * frozen) <= 8  # beside the moments a count of steps each


def test_precision_and_an_average():
    full, half, averaged = (
        counted(BUILD["cnn"], 64, **words) for words in ({}, {"precision": "bf16"}, {"average": True})
    )
    assert half.state == full.state and half.per_sample < 0.9 * full.per_sample
    assert averaged.peak - full.peak == averaged.average == full.weights


class Reads(MLP):
    """Whose constructor needs numbers, as real tensors have them."""

    def __init__(self, forward_too):
        super().__init__(IMAGE[1:], 10, [16], "relu", 0.0)
        self.scale = self.layers[1].weight.abs().max().item()
        self.forward_too = forward_too

    def forward(self, x):
        return super().forward(x) * (x.max().item() if self.forward_too else self.scale)


def test_a_model_that_needs_numbers():
    assert counted(lambda: Reads(False), 8).peak > 0
    need = counted(lambda: Reads(True), 8)
    assert need.peak is None and need.fits(10**9) is None and need.states == pytest.approx(2 * need.weights, rel=0.01)
