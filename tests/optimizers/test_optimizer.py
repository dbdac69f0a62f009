"""Optimizers against torch's, hand-written recurrences, and state restored from a file."""

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from launcher.core.errors import ConfigError
from launcher.optimizers.lion import Lion
from launcher.optimizers.muon import Muon
from launcher.optimizers.optimizer import build_optimizer, lean_step
from launcher.training import layout

pytestmark = pytest.mark.versions

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9")
PARAMETRIZED = [pytest.param(name, marks=NEEDS_MUON) if name == "muon" else name for name in OPTIONS]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Two threads on work this small only wait for each other: 30 s instead of 3 on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """One of each: an embedding, a hidden matrix, a convolution, a norm and an output layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.conv(self.embed(tokens).transpose(1, 2)).mean(2)
        return self.out(self.norm(torch.tanh(self.hidden(x))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def option(name: str, **changes):
    return OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes)


def train(model: nn.Module, *optimizers, start: int = 0, stop: int = 12) -> nn.Module:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(11, (16, 5), generator=generator)
        targets = torch.randint(3, (16,), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model


def assert_same(a: nn.Module, b: nn.Module, **tolerance) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


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
def test_bias_and_norm_are_not_decayed_where_asked(name):
    """With gradients of 0 only decoupled decay moves a weight; the groups tell for the coupled ones."""
    model = net()
    optimizer = build_optimizer(option(name, weight_decay=0.5), model, 1.0, False)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for parameter_name, p in model.named_parameters():
        expected = 0.5 if p.dim() > 1 else 0.0
        assert decays[id(p)] == expected, parameter_name
    if name in ("adamw", "lion", "muon"):
        before = copy.deepcopy(model.state_dict())
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for parameter_name, p in model.named_parameters():
            assert torch.equal(p, before[parameter_name]) == (p.dim() <= 1), parameter_name


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad", "rmsprop", "lion"])
def test_one_group_where_nothing_distinguishes_parameters(name):
    for decay, both in ((0.0, False), (0.1, True)):
        optimizer = build_optimizer(option(name, weight_decay=decay), net(), 1.0, both)
        assert len(optimizer.param_groups) == 1
    assert len(build_optimizer(option(name, weight_decay=0.1), net(), 1.0, False).param_groups) == 2


def test_default_weight_decay_of_the_class_counts_too():
    settings = {"_target_": "torch.optim.AdamW", "lr": 0.1}  # its own default is 0.01
    assert [g["weight_decay"] for g in build_optimizer(settings, net(), 1.0, False).param_groups] == [0.01, 0.0]


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


def test_the_output_layer_that_muon_leaves_alone_may_be_tied_to_the_embedding():
    """The last hidden matrix is hidden all the same."""
    model = net()
    model.hidden, model.out = nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
    model.out.weight = model.embed.weight
    optimizer = build_optimizer(option("muon"), model, 1.0, True)
    assert [p.shape for p in optimizer.inner[0].param_groups[0]["params"]] == [(6, 6)]


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
        (option("sgd", lr=-0.1), ["optimizer.lr", "-0.1", ">= 0"]),
        (option("sgd", lr="fast"), ["optimizer.lr", "fast"]),
        (option("sgd", lr=None), ["optimizer.lr", "None"]),
        (option("sgd", lr=float("nan")), ["optimizer.lr", "nan"]),
        (option("sgd", momentum=-1), ["momentum", "-1"]),
        (option("sgd", nesterov=True, momentum=0), ["Nesterov"]),
        (option("adamw", betas=[0.9, 1.5]), ["beta", "1.5"]),
        (option("lion", betas=[0.9, 1.5]), ["betas", "1.5", "[0, 1)"]),
        (option("lion", betas=[0.9]), ["betas", "two numbers"]),
        (option("lion", weight_decay=-1.0), ["weight_decay", "-1.0"]),
        (option("muon", adamw_lr=-1.0), ["optimizer.adamw_lr", "-1.0"]),
        (option("sgd", fused=True, foreach=True), ["fused", "foreach"]),
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
