"""LoRA beside its formula, W + alpha / rank * B A, and runs with it: resumed, sharded, exported."""

import copy
import signal

import pytest
import torch
from killed_net import KILLED
from model_options import settings
from processes import command, rows, train
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import launcher
from launcher.core.errors import ConfigError
from launcher.models.adapters import adapt, all_called, last_layer, merged

pytest.importorskip("peft")
LORA = {"name": "lora", "rank": 3, "alpha": 12, "dropout": 0.0, "target_modules": "all-linear", "modules_to_save": None}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 6), nn.Tanh())
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(self.conv(x).mean(3).flatten(1)))


def net(**changes):
    torch.manual_seed(0)
    model = Net()
    plain = copy.deepcopy(model)
    lines = adapt(model, LORA | changes, {"num_outputs": 2})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return plain, model, lines


def by_hand(plain, model):
    """The weights of the model with each update added, in float64."""
    state, found = model.state_dict(), {}
    for name in plain.state_dict():
        layer, _, leaf = name.rpartition(".")
        if f"{layer}.base_layer.{leaf}" not in state:
            found[name] = state[name].double()
            continue
        found[name] = state[f"{layer}.base_layer.{leaf}"].double()
        if leaf == "weight":
            b, a = (state[f"{layer}.lora_{one}.default.weight"].double() for one in "BA")
            update = b @ a if b.dim() == 2 else torch.einsum("or,rikl->oikl", b[..., 0, 0], a)
            found[name] = found[name] + 4 * update  # alpha / rank
    return found


@pytest.mark.parametrize("targets", ["all-linear", ["conv", "body.2"]])
def test_it_computes_its_formula_and_can_be_merged(targets):
    plain, model, (line,) = net(target_modules=targets)
    inputs = torch.randn(5, 1, 4, 4)
    reference = copy.deepcopy(plain).double()
    reference.load_state_dict(by_hand(plain, model))
    wanted = reference(inputs.double()).float()
    assert not torch.allclose(wanted, plain(inputs), atol=1e-2)
    torch.testing.assert_close(model(inputs), wanted, rtol=1e-4, atol=1e-5)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    layers = ["body.0", "body.2"] if targets == "all-linear" else targets
    lora = {f"{layer}.lora_{one}.default.weight" for layer in layers for one in "AB"}
    assert trained == lora | {"head.weight", "head.bias"}
    assert f"lora in 2 modules, {sum(one.numel() for one in model.parameters() if one.requires_grad):,} " in line
    whole = merged(model)
    assert whole.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(whole(inputs), wanted, rtol=1e-4, atol=1e-5)


def test_at_first_it_is_the_model_itself():
    torch.manual_seed(0)
    model, inputs = Net(), torch.randn(3, 1, 4, 4)
    before = model(inputs)
    adapt(model, LORA, {"num_outputs": 2})
    assert model(inputs).equal(before)
    assert adapt(Net(), {"name": "none"}, {}) == [] and adapt(Net(), None, {}) == []


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (7,)), ("timm", (3, 32, 32)), ("torchvision", (3, 32, 32)), ("transformer", None)]
)
def test_models_of_every_library_take_it(name, shape):
    """Each update that is there counts in the outputs."""
    from launcher.models.build import build_model

    small = {"timm": {"name": "vit_tiny_patch16_224", "options": {"img_size": 32}},
             "torchvision": {"name": "convnext_tiny"},
             "transformer": {"width": 16, "layers": 1, "heads": 2}}  # fmt: skip
    facts = (
        {"block": 8, "num_outputs": 20, "num_classes": 20}
        if shape is None
        else {"num_outputs": 4, "input_shape": shape}
    )
    torch.manual_seed(0)
    model = build_model(settings(name) | small.get(name, {}), facts).eval()
    adapt(model, LORA, facts)
    inputs = torch.randint(20, (2, 8)) if shape is None else torch.randn(2, *shape)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "lora_B" in part:
                parameter.normal_()
    with all_called(model):
        model(inputs).square().sum().backward()
    gradients = {part: one.grad for part, one in model.named_parameters() if one.requires_grad}
    assert len(gradients) > 3 and not [part for part, one in gradients.items() if one is None or not one.any()]
    assert (f"{last_layer(model, facts['num_outputs'])}.weight" in gradients) == (shape is not None)


def test_layers_that_are_not_called_are_found():
    models = pytest.importorskip("torchvision.models")
    model = models.swin_transformer.SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=2)
    adapt(model, LORA, {"num_outputs": 2})
    with (
        pytest.raises(ConfigError, match=r"4 of 8 layers are not called .*features\.1\.0\.attn\.qkv"),
        all_called(model),
    ):
        model(torch.randn(1, 3, 16, 16))
    with all_called(model):
        pass
    mlp = net()[1]
    with all_called(mlp):
        mlp(torch.randn(1, 1, 4, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*model.modules(), *mlp.modules()])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        (Net, {"target_modules": ["boddy.*"]}, r"adapter\.target_modules: boddy\.\* matches no linear layer.*body\.0"),
        (Net, {"target_modules": ["head"]}, r"head, but it is the last layer; name it in adapter\.modules_to_save"),
        (Net, {"modules_to_save": ["x*"]}, r"adapter\.modules_to_save: x\* matches no module.*conv"),
        (Net, {"modules_to_save": ["body.0"]}, r"both name body\.0"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(4, 2)), {}, "no linear layer to adapt but"),
        (Tied, {"target_modules": ["first"]}, "first, but it shares its weights with another layer"),
        (lambda: nn.TransformerEncoderLayer(4, 2), {}, "no linear layer to adapt"),
        (lambda: nn.TransformerEncoderLayer(4, 2), {"target_modules": ["linear1"]}, "reads its weights directly"),
    ],
)
def test_what_is_wrong_is_a_sentence(model, changes, said):
    with pytest.raises(ConfigError, match=said):
        adapt(model(), LORA | changes, {"num_outputs": 2})


RUN = [
    "data=iris", "model._target_=own_net.Net", "model.hidden=[16,8]", "adapter=lora", "adapter.rank=2",
    "optimizer=adamw", "optimizer.lr=0.05", "ema_decay=0.8", "batch.global_size=16",
    "epochs=3", "log_every=1", "eval_every=3", "checkpoint.every=3", "checkpoint.keep=9", "threads=1",
    "wandb.mode=disabled", "param_groups=[{match: '*lora_B*', lr: 0.2}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    (directory / "own_net.py").write_text(KILLED)
    train([*RUN, "hydra.run.dir=run"], directory, name="io-run").ok()
    return directory


def weights(run):
    return load_file(max((run / "checkpoints").glob("step_*")) / "model.safetensors")


@pytest.mark.soak
def test_killed_it_ends_with_the_same_bits(place):
    words = [*RUN, "hydra.run.dir=killed"]
    killed = train(words, place, environment={"KILL": "20"}, name="io-killed").wait()
    assert killed.status == [-signal.SIGKILL] and any((place / "killed/checkpoints").glob("step_*"))
    train(words, place, name="io-on").ok()
    assert rows(place / "killed") == rows(place / "run")
    one, other = weights(place / "killed"), weights(place / "run")
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    first = load_file(min((place / "run/checkpoints").glob("step_*")) / "model.safetensors")
    same = {name for name in one if one[name].equal(first[name])}
    assert same == {name for name in one if "base_layer" in name}, "what was there before stays"


@pytest.mark.soak
def test_shared_among_devices_it_learns_the_same(place):
    words = [*RUN, "strategy=fsdp", "batch.max_per_device=3", "hydra.run.dir=fsdp"]
    train(words, place, 2, name="io-fsdp").ok()
    for row, expected in zip(rows(place / "fsdp"), rows(place / "run"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.soak
def test_it_is_exported_as_a_plain_model_and_loaded(place, monkeypatch):
    monkeypatch.chdir(place)
    command("export", ["run_dir=run", "format=safetensors", "checkpoint=last", "output=out", "threads=1"], place).ok()
    plain = load_file(place / "out/model.safetensors")
    model = launcher.load("run", "last")
    inputs = torch.randn(7, 4)
    layers = [name.removesuffix(".weight") for name in plain if name.endswith(".weight")]
    assert not any("base_layer" in name or "lora" in name for name in plain) and len(layers) == 3
    hidden = inputs
    for layer in layers:
        hidden = F.linear(hidden, plain[f"{layer}.weight"], plain[f"{layer}.bias"])
        hidden = hidden if layer == layers[-1] else hidden.relu()
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), hidden, rtol=1e-4, atol=1e-5)
