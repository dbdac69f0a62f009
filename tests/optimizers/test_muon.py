"""Muon against torch.optim.Muon and AdamW apart."""

import copy

import pytest
import torch
from optimizer_cases import NEEDS_MUON, assert_same, net, option, train
from torch import nn

from launcher.core.errors import ConfigError
from launcher.optimizers.muon import Muon
from launcher.optimizers.optimizer import build_optimizer

pytestmark = pytest.mark.versions


@NEEDS_MUON
@pytest.mark.parametrize("decay_bias_and_norm", [True, False])
def test_muon_is_torch_muon_and_adamw_run_apart(decay_bias_and_norm):
    ours, theirs = net(), net()
    optimizer = build_optimizer(option("muon", lr=0.02, adamw_lr=0.003), ours, 2.0, decay_bias_and_norm)
    hidden = [theirs.hidden.weight]
    rest = [p for p in theirs.parameters() if p is not theirs.hidden.weight]
    bare = [] if decay_bias_and_norm else [p for p in rest if p.dim() <= 1]
    groups = [{"params": [p for p in rest if p.dim() > 1 or decay_bias_and_norm]}]
    groups += [{"params": bare, "weight_decay": 0.0}] if bare else []
    muon = torch.optim.Muon(hidden, lr=0.04, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(groups, lr=0.006, weight_decay=0.1, fused=True)
    train(ours, optimizer)
    train(theirs, muon, adamw)
    assert_same(ours, theirs, rtol=0, atol=0)


@NEEDS_MUON
def test_muon_groups_are_shared_also_after_a_restore():
    model = net()
    optimizer = build_optimizer(option("muon"), model, 1.0, True)
    assert isinstance(optimizer, Muon)
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            group["weight_decay"] = 0.0
        before = copy.deepcopy(model.state_dict())
        train(model, optimizer, stop=2)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    train(model, optimizer, stop=1)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


@NEEDS_MUON
def test_muon_without_hidden_matrix_is_refused():
    with pytest.raises(ConfigError, match="nothing is left for Muon"):
        build_optimizer(option("muon"), nn.Linear(4, 2), 1.0, True)


def test_the_output_layer_may_be_tied_to_the_embedding():
    """The last hidden matrix is hidden all the same."""
    model = net()
    model.hidden, model.out = nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
    model.out.weight = model.embed.weight
    optimizer = build_optimizer(option("muon"), model, 1.0, True)
    assert [p.shape for p in optimizer.inner[0].param_groups[0]["params"]] == [(6, 6)]
