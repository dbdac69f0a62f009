"""The moving average of the weights, beside its recurrence and torch's own, from the checkpoints of a whole run."""

import pytest
import torch
from kill_loop import NETS, RUN, place
from processes import own, rows, train
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DECAY, STEPS = 0.9, 10
WORDS = [word for word in RUN if not word.startswith(("epochs", "model", "eval", "checkpoint", "log", "loss", "batch"))]
WORDS += [
    "model._target_=own.Net", "epochs=2", "eval_every=1", "log_every=1", "checkpoint.every=1", "checkpoint.keep=99",
    "batch.global_size=12", "batch.max_per_device=6", "freeze=[body.0.bias]",
]  # fmt: skip


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_it_follows_its_recurrence_and_is_what_is_measured(world, tmp_path):
    """a <- decay a + (1 - decay) w after each update, from the initial weights on; buffers are those of the model."""
    place(tmp_path, NETS)
    train(WORDS, tmp_path, world).ok()
    module = own(tmp_path)
    torch.manual_seed(0)
    net: nn.Module = module.Net(5, 3)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    theirs.update_parameters(net)  # its first update is a copy: the initial weights
    average = {name: parameter.clone() for name, parameter in net.named_parameters()}
    validation = module.load().validation
    for step, row in enumerate(rows(tmp_path / "run"), start=1):
        path = tmp_path / f"run/checkpoints/step_{step:08d}"
        saved, weights = load_file(path / "model.safetensors"), torch.load(path / "state.pt")["model"]
        net.load_state_dict(weights)
        theirs.update_parameters(net)
        of_torch = dict(theirs.module.named_parameters())
        for name in average:
            average[name] = DECAY * average[name] + (1 - DECAY) * weights[name]
            torch.testing.assert_close(saved[name], average[name], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(saved[name], of_torch[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(saved["head.weight"], weights["head.weight"])
        assert torch.equal(saved["body.0.bias"], net.body[0].bias), "frozen"
        assert all(torch.equal(saved[name], buffer) for name, buffer in net.named_buffers())
        net.load_state_dict(saved)
        with torch.no_grad():
            loss = cross_entropy(net.eval()(validation.inputs), validation.targets)
        assert row["eval/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert step == STEPS
