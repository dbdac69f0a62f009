"""Groups with and without weight decay."""

import copy

import options
import pytest
import torch
from omegaconf import OmegaConf
from optimizer_cases import PARAMETRIZED, net, option
from torch import nn

from launcher.core.errors import ConfigError
from launcher.models.mlp import MLP
from launcher.models.resnet import ResNet
from launcher.optimizers.optimizer import build_optimizer, layers_of
from launcher.schedulers.schedule import build_schedule


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


def chosen(name, **changes):
    return OmegaConf.create(options.option(*name.split("/"), **changes))


class Transformer(nn.Module):
    """A position embedding of its own, an embedding, three blocks in a list, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 6))
        self.embed = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(2))
        self.blocks.append(nn.TransformerEncoderLayer(6, 2, 8, dropout=0, batch_first=True))
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Transformer()


def depths(model):
    return {name.rpartition(".")[0]: layer for name, layer in layers_of(model).items()}


def test_depth_follows_the_order_of_the_children():
    assert depths(MLP((4,), 3, [8, 8], "relu", 0.1)) == {"layers.1": 0, "layers.4": 1, "layers.7": 2}
    found = layers_of(Transformer())
    assert found["position"] == found["embed.weight"] == 0
    assert {found[f"blocks.0.{n}"] for n in ("0.weight", "0.bias", "1.weight", "1.bias")} == {1}, (
        "a norm joins its layer"
    )
    assert found["blocks.1.0.weight"] == 2 and found["blocks.1.1.bias"] == 2
    assert {layer for name, layer in found.items() if name.startswith("blocks.2.")} == {3}
    assert found["norm.weight"] == 3 and found["head.weight"] == found["head.bias"] == 4
    assert layers_of(Wrapped()) == {f"inner.{name}": layer for name, layer in found.items()}, (
        "a lone child is looked into"
    )
    resnet = layers_of(ResNet((3, 8, 8), 5, 8, 4))
    assert resnet["features.0.weight"] == resnet["features.1.weight"] == 0
    blocks = {resnet[f"features.{i}.convolution{c}.weight"] for i in (3, 4, 5) for c in (1, 2)}
    assert blocks == {1, 2, 3} and resnet["output.weight"] == 4


def train_alike(mine, other):
    """Five updates of two models, each with its optimizer: they end with the same weights."""
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        tokens, targets = torch.randint(11, (8, 5), generator=generator), torch.randint(3, (8,), generator=generator)
        for one, its in (mine, other):
            its.zero_grad()
            nn.functional.cross_entropy(one(tokens), targets).backward()
            its.step()
    for (name, p), q in zip(mine[0].named_parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("decay_bias_and_norm", [True, False])
def test_rates_fall_per_layer_and_training_is_that_of_plain_groups(decay_bias_and_norm):
    def model():
        torch.manual_seed(0)
        return Transformer()

    ours, theirs = model(), model()
    settings = chosen("optimizer/sgd", lr=0.01, weight_decay=0.1)
    optimizer = build_optimizer(settings, ours, 2.0, decay_bias_and_norm, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = layers_of(ours)
    for name, p in ours.named_parameters():
        assert rates[id(p)] == pytest.approx(0.02 * 0.5 ** (4 - layers[name]), rel=1e-12), name
    assert optimizer.param_groups[0]["lr"] == 0.02, "the record's lr is that of the last layer, as it was set"
    assert len(optimizer.param_groups) == (5 if decay_bias_and_norm else 9), "embeddings alone have no vector"

    plain = torch.optim.SGD(
        [
            {
                "params": [p],
                "lr": 0.02 * 0.5 ** (4 - layers[name]),
                "weight_decay": 0.1 if decay_bias_and_norm or p.dim() > 1 else 0.0,
            }
            for name, p in theirs.named_parameters()
        ],
        momentum=0.9,
    )
    train_alike((ours, optimizer), (theirs, plain))


@pytest.mark.parametrize("name", ["cosine", "step", "linear", "one_cycle", "constant"])
def test_schedules_scale_every_layer_alike(name):
    model = Transformer()
    optimizer = build_optimizer(chosen("optimizer/sgd"), model, 1.0, True, 0.5)
    schedule = build_schedule(chosen(f"scheduler/{name}", interval="step", warmup=3), optimizer, 20, 5)
    for _ in range(20):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([rates[0] * 0.5**i for i in range(5)], rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9")
def test_both_rates_of_muon_follow_the_depth():
    model = Transformer()
    optimizer = build_optimizer(chosen("optimizer/muon", lr=0.02, adamw_lr=0.003), model, 1.0, True, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers_of(model).items():
        p = model.get_parameter(name)
        hidden = p.dim() == 2 and name not in ("embed.weight", "head.weight")
        assert rates[id(p)] == pytest.approx((0.02 if hidden else 0.003) * 0.5 ** (4 - layer)), name


def test_frozen_layers_count_as_layers_and_have_no_group():
    model = Transformer()
    model.blocks.requires_grad_(False)
    optimizer = build_optimizer(chosen("optimizer/sgd"), model, 1.0, True, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.1 * 0.5**4]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_models_of_timm_get_the_groups_that_timm_makes(name):
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(name, pretrained=False, num_classes=3)
    theirs = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
        for p in group["params"]
    }
    optimizer = build_optimizer(chosen("optimizer/adamw", lr=1.0, weight_decay=0.05), model, 1.0, False, 0.75)
    ours = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert ours.keys() == theirs.keys() and len({scale for scale, _ in ours.values()}) > 4
    for key, pair in ours.items():
        assert pair == pytest.approx(theirs[key])


def test_a_group_matcher_without_timm(monkeypatch):
    import sys

    model = Transformer()
    model.group_matcher = lambda coarse: {}
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(ConfigError, match=r"layer_decay.*pip install timm"):
        build_optimizer(chosen("optimizer/sgd"), model, 1.0, True, 0.5)


OWN = [{"match": "head.*", "lr": 0.05, "weight_decay": 0.0}, {"match": ["*bias", "position"], "weight_decay": 0.3}]


@pytest.mark.parametrize("decay_bias_and_norm", [True, False])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_groups_of_ones_own_train_as_plain_groups(decay_bias_and_norm, layer_decay):
    """The bias of the head is in two: the last counts, with the rate of the others."""
    torch.manual_seed(0)
    ours = Transformer()
    theirs = copy.deepcopy(ours)
    ours.embed.requires_grad_(False), theirs.embed.requires_grad_(False)
    optimizer = build_optimizer(
        chosen("optimizer/sgd", lr=0.01, weight_decay=0.1), ours, 2.0, decay_bias_and_norm, layer_decay, OWN
    )
    layers = layers_of(theirs)

    def rate_and_decay(name, p):
        share = 1.0 if layer_decay is None else layer_decay ** (4 - layers[name])
        if name == "head.weight":
            return 2 * 0.05 * share, 0.0
        if name.endswith("bias") or name == "position":
            return 2 * 0.01 * share, 0.3
        return 2 * 0.01 * share, 0.1 if decay_bias_and_norm or p.dim() > 1 else 0.0

    trained = [(name, p, *rate_and_decay(name, p)) for name, p in theirs.named_parameters() if p.requires_grad]
    plain = torch.optim.SGD(
        [{"params": [p], "lr": lr, "weight_decay": decay} for _, p, lr, decay in trained], momentum=0.9
    )
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, _, lr, decay in trained:
        assert found[id(ours.get_parameter(name))] == (pytest.approx(lr, rel=1e-12), decay), name
    assert len(found) == len(trained)
    train_alike((ours, optimizer), (theirs, plain))


@pytest.mark.parametrize("name", ["cosine", "step", "linear", "one_cycle", "constant"])
def test_schedules_scale_groups_of_ones_own_alike(name):
    model = Transformer()
    optimizer = build_optimizer(
        chosen("optimizer/sgd", lr=0.01), model, 1.0, True, None, [{"match": "head*", "lr": 0.05}]
    )
    schedule = build_schedule(chosen(f"scheduler/{name}", interval="step", warmup=3), optimizer, 20, 5)
    for _ in range(20):
        first, head = (group["lr"] for group in optimizer.param_groups)
        assert head == pytest.approx(5 * first, rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9")
def test_both_kinds_of_muon_take_a_group_of_ones_own():
    model = Transformer()
    own = [{"match": "blocks.0.*", "lr": 0.5}]
    optimizer = build_optimizer(chosen("optimizer/muon", lr=0.02, adamw_lr=0.003), model, 1.0, True, None, own)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        hidden = p.dim() == 2 and name not in ("embed.weight", "head.weight")
        assert rates[id(p)] == (0.5 if name.startswith("blocks.0.") else 0.02 if hidden else 0.003), name


def test_an_optimizer_without_the_argument_has_no_such_group():
    with pytest.raises(ConfigError, match="param_groups: Rprop has no argument weight_decay"):
        build_optimizer(
            {"_target_": "torch.optim.Rprop", "lr": 0.1}, net(), 1.0, True, None, [{"match": "*", "weight_decay": 0.1}]
        )
