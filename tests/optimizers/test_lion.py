"""Lion against its recurrence."""

import pytest
import torch
from optimizer_cases import net, option, train
from torch import nn

from launcher.optimizers.lion import Lion
from launcher.optimizers.optimizer import build_optimizer

pytestmark = pytest.mark.versions


def test_lion_is_its_recurrence():
    model, lr, (b1, b2), decay = net(), 1e-3, (0.9, 0.99), 0.1
    optimizer = build_optimizer(option("lion", lr=lr, weight_decay=decay), model, 1.0, True)
    hand = {name: [p.detach().clone().double(), torch.zeros_like(p).double()] for name, p in model.named_parameters()}
    for step in range(10):
        train(model, optimizer, start=step, stop=step + 1)
        for name, p in model.named_parameters():
            value, momentum = hand[name]
            assert p.grad is not None
            # The sign of a float32 interpolation, as of a float64 one where it is not on the edge.
            blend = b1 * momentum + (1 - b1) * p.grad.double()
            value -= lr * (blend.sign() + decay * value)
            hand[name][1] = b2 * momentum + (1 - b2) * p.grad.double()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), hand[name][0], rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, dict(net().named_parameters())[name])


def test_lion_skips_parameters_without_gradient_and_runs_a_closure():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Lion([a, b], lr=0.5, betas=(0.9, 0.99), weight_decay=0.0)

    def closure():
        loss = (a * torch.tensor([1.0, -1.0, 0.0])).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 0.0
    assert a.tolist() == [0.5, 1.5, 1.0] and b.tolist() == [1.0] * 3
