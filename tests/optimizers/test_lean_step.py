"""The step without torch's wrappers."""

import warnings

import pytest
import torch
from optimizer_cases import PARAMETRIZED, net, option

from launcher.optimizers.lean_step import lean_step
from launcher.optimizers.optimizer import build_optimizer

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_the_lean_step_is_the_step(name):
    """Same bits as the step that everybody calls, for every optimizer of conf/, with a schedule that counts calls."""
    weights = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = net()
        optimizer = build_optimizer(option(name), model, 1.0, True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
        step = lean_step(optimizer) if lean else optimizer.step  # after the schedule, which wraps the instance's
        for _ in range(4):
            for p in model.parameters():
                p.grad = torch.randn(p.shape)
            step()
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a schedule that believes to come first warns
                schedule.step()
        weights.append([p.detach().clone() for p in model.parameters()])
        assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_an_optimizer_with_hooks_keeps_them():
    optimizer = build_optimizer(option("sgd"), net(), 1.0, True)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    lean_step(optimizer)()
    assert seen == [1]
