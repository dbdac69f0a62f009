"""Optimizers against torch's, hand-written recurrences, and state restored from a file."""

import io

import pytest
import torch
from optimizer_cases import CONF, OPTIONS, PARAMETRIZED, assert_same, net, option, train
from torch import nn

from launcher.core.errors import ConfigError
from launcher.optimizers.optimizer import build_optimizer
from launcher.training import layout

pytestmark = pytest.mark.versions


@pytest.mark.parametrize(
    ("name", "changes", "plain"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            "sgd",
            {"lr": 0.1, "nesterov": True, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        ("adam", {"weight_decay": 0.1}, lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1)),
        ("adamw", {}, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01)),
        ("adamw", {"amsgrad": True}, lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True, weight_decay=0.01)),
        ("adagrad", {}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
        ("rmsprop", {}, lambda p: torch.optim.RMSprop(p, lr=0.001)),
    ],
)
def test_option_steps_as_torch_does(name, changes, plain):
    ours, theirs = net(), net()
    train(ours, build_optimizer(option(name, **changes), ours, 1.0, True))
    train(theirs, plain(theirs.parameters()))
    assert not torch.equal(ours.out.weight, net().out.weight)
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PARAMETRIZED)
@pytest.mark.parametrize("decay_bias_and_norm", [True, False])
def test_restored_state_goes_on_with_the_same_bits(name, decay_bias_and_norm):
    whole = net()
    settings = option(name, weight_decay=0.05)
    train(whole, build_optimizer(settings, whole, 1.0, decay_bias_and_norm), stop=12)

    first = net()
    optimizer = build_optimizer(settings, first, 1.0, decay_bias_and_norm)
    train(first, optimizer, stop=5)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = net(seed=1)
    second.load_state_dict(saved["model"])
    optimizer = build_optimizer(settings, second, 1.0, decay_bias_and_norm)
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, start=5, stop=12)
    assert_same(second, whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_learning_rate_is_scaled(name):
    settings = option(name)
    for group in build_optimizer(settings, net(), 0.25, True).param_groups:
        assert group["lr"] == settings.lr * 0.25


def test_frozen_parameters_are_left_out():
    model = net()
    model.embed.requires_grad_(False)
    optimizer = build_optimizer(option("adamw"), model, 1.0, True)
    assert all(p is not model.embed.weight for g in optimizer.param_groups for p in g["params"])
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(option("adamw"), model.requires_grad_(False), 1.0, True)


def test_fused_where_torch_has_it_unless_told_otherwise():
    fused = {name: build_optimizer(option(name), net(), 1.0, True).param_groups[0].get("fused") for name in OPTIONS[:3]}
    assert fused["adam"] is True and fused["adamw"] is True
    assert build_optimizer(option("sgd"), net(), 1.0, True).param_groups[0]["fused"] is True
    off = build_optimizer(option("sgd", fused=False), net(), 1.0, True).param_groups[0]
    assert off["fused"] is False and off["foreach"] is None
    foreach = build_optimizer(option("sgd", foreach=True), net(), 1.0, True).param_groups[0]
    assert foreach["foreach"] is True and not foreach["fused"]
    sparse = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 2))
    assert not build_optimizer(option("sgd"), sparse, 1.0, True).param_groups[0]["fused"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_model_may_move_after_the_optimizer_is_built(name):
    before, after = net(), net().cuda()
    early = build_optimizer(option(name), before, 1.0, True)
    before.cuda()
    layout.load_optimizer_state(early, early.state_dict())  # as the trainer does: Adagrad has a state already
    late = build_optimizer(option(name), after, 1.0, True)
    torch.manual_seed(0)
    for model, optimizer in ((before, early), (after, late)):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert_same(before, after)


class Own(torch.optim.Optimizer):
    """Plain gradient descent that also wants to know the model."""

    def __init__(self, params, lr, strength, model):
        super().__init__(params, {"lr": lr, "strength": strength})
        self.model = model

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * group["strength"] * p.grad


def test_own_optimizer_by_target():
    ours, theirs = net(), net()
    optimizer = build_optimizer(
        {"_target_": f"{__name__}.Own", "lr": 0.1, "strength": 2.0, "fused": None}, ours, 0.5, False
    )
    assert isinstance(optimizer, Own) and optimizer.model is ours
    train(ours, optimizer)
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1))
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (option("sgd", momentum=-1), ["momentum", "-1"]),
        (option("sgd", nesterov=True, momentum=0), ["Nesterov"]),
        (option("adamw", betas=[0.9, 1.5]), ["beta", "1.5"]),
        (option("lion", betas=[0.9, 1.5]), ["betas", "1.5", "[0, 1)"]),
        (option("lion", betas=[0.9]), ["betas", "two numbers"]),
        (option("lion", weight_decay=-1.0), ["weight_decay", "-1.0"]),
        (option("sgd", rho=1), ["optimizer.rho", "momentum"]),
        ({"_target_": "torch.optim.Sgd", "lr": 1}, ["torch.optim.Sgd"]),
        ({"_target_": "builtins.dict", "lr": 1}, ["optimizer"]),
        ({"lr": 1}, ["optimizer._target_"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ConfigError) as raised:
        build_optimizer(settings, net(), 1.0, True)
    for word in words:
        assert word in str(raised.value)


def test_every_option_opens_with_its_command():
    assert OPTIONS == ["adagrad", "adam", "adamw", "lion", "muon", "rmsprop", "sgd"]
    for name in OPTIONS:
        first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ") and first.endswith(f"optimizer={name}")
