"""Reference models: shapes, parameter counts in closed form, independence of samples, refusals."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.models.checks import group_norm
from launcher.models.cnn import CNN
from launcher.models.linear import Linear
from launcher.models.mlp import ACTIVATIONS, MLP
from launcher.models.resnet import ResNet, StandardisedConv2d

CONF = Path(__file__).parents[2] / "conf" / "model"
ELSEWHERE = {"timm", "torchvision", "transformer"}  # test_vision.py, test_text.py
NAMES = sorted({path.stem for path in CONF.glob("*.yaml")} - ELSEWHERE)
IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 5), (1, 1, 1)]
TABLES = [(4,), (13,)]


def settings(name: str, **changes) -> dict:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")) | changes


def make(name: str, shape: tuple[int, ...], outputs: int, **changes) -> nn.Module:
    torch.manual_seed(0)
    return build("model", settings(name, **changes), input_shape=shape, num_outputs=outputs)


def cases() -> list:
    return [
        (name, shape) for name in NAMES for shape in IMAGES + TABLES if len(shape) == 3 or name in ("linear", "mlp")
    ]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_first_line_of_each_option_says_how_to_pick_it(name):
    first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(f": model={name}")


@pytest.mark.parametrize(("name", "shape"), cases())
@pytest.mark.parametrize("outputs", [1, 10])
def test_shape_gradient_and_independence_of_samples(name, shape, outputs):
    model = make(name, shape, outputs)
    inputs = torch.randn(5, *shape)
    result = model(inputs)
    assert result.shape == (5, outputs)
    result.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in inputs])
        torch.testing.assert_close(model(inputs), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_batch_statistics(name):
    model = make(name, (1, 8, 8), 10)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert not list(model.buffers())


def test_linear_is_the_affine_map():
    model = make("linear", (2, 3), 4)
    inputs = torch.randn(7, 2, 3)
    weight, bias = model.output.weight, model.output.bias
    torch.testing.assert_close(model(inputs), torch.einsum("kij,nij->nk", weight.view(4, 2, 3), inputs) + bias)
    assert count(Linear((2, 3), 4, bias=False)) == 24


def test_mlp_equals_layers_written_out():
    model = MLP((1, 8, 8), 10, hidden=[32, 16], activation="gelu", dropout=0.0)
    first, second, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    inputs = torch.randn(6, 1, 8, 8)
    hidden = nn.functional.gelu(inputs.reshape(6, 64) @ first.weight.T + first.bias)
    hidden = nn.functional.gelu(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(model(inputs), hidden @ last.weight.T + last.bias)
    assert count(model) == 65 * 32 + 33 * 16 + 17 * 10
    assert count(MLP((64,), 10, hidden=[], activation="relu", dropout=0.0)) == 65 * 10


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_knows_each_activation(activation):
    model = MLP((4,), 3, hidden=[5], activation=activation, dropout=0.0)
    function = getattr(torch.nn.functional, activation) if activation != "tanh" else torch.tanh
    first, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    inputs = torch.randn(2, 4)
    torch.testing.assert_close(model(inputs), last(function(first(inputs))))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_dropout_works_in_training_alone(name):
    model = make(name, (1, 8, 8), 10, dropout=0.5)
    inputs = torch.randn(4, 1, 8, 8)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_cnn_has_the_parameters_of_its_description():
    model = CNN((1, 28, 28), 10, channels=[32, 64], dense=128, dropout=0.25)
    convolutions = 9 * 32 + 9 * 32 * 64
    norms = 2 * (32 + 64)
    assert count(model) == convolutions + norms + (64 * 7 * 7 + 1) * 128 + 129 * 10


@pytest.mark.parametrize(("depth", "blocks"), [(8, 3), (20, 9)])
def test_resnet_has_as_many_layers_as_its_depth(depth, blocks):
    model = ResNet((3, 32, 32), 10, depth=depth, width=16)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth == 2 * blocks + 2
    # 269,722 with shortcuts and an output that have no weights of their own for each shape and place (He et al. 2015,
    # table 6: 0.27 M): the 1x1 convolutions and their norms come on top, and 15 more places of the 16 of the output.
    if depth == 20:
        assert count(model) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64) + 15 * 64 * 10


@pytest.mark.parametrize("name", NAMES)
def test_learns_digits_by_heart(name):
    # A model whose layers are wired wrongly cannot fit 32 random labels.
    small = {"mlp": {"dropout": 0.0}, "cnn": {"dropout": 0.0, "channels": [8, 16]}, "resnet": {"width": 8, "depth": 8}}
    model = make(name, (1, 8, 8), 4, **small.get(name, {}))
    inputs, labels = torch.randn(32, 1, 8, 8), torch.randint(0, 4, (32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 if name != "linear" else 0.1)
    for _ in range(50):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < (0.1 if name != "linear" else 0.5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (8, 1), (16, 1), (20, 1), (31, 1), (48, 3), (64, 4), (100, 5)]
)
def test_groups_have_16_channels_or_the_next_that_divides(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups and norm.num_channels == channels


def test_filters_are_standardised():
    convolution = StandardisedConv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    images, weight = torch.randn(2, 3, 7, 7, dtype=torch.float64), convolution.weight.detach()
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), correction=0, keepdim=True)
    expected = nn.functional.conv2d(images, (weight - mean) / (variance + 1e-6).sqrt(), stride=2, padding=1)
    torch.testing.assert_close(convolution(images), expected)
    convolution.weight.data.mul_(3).add_(1)  # which makes no difference but through the 1e-6
    torch.testing.assert_close(convolution(images), expected, rtol=1e-4, atol=1e-4)


def test_channels_last_gives_the_same():
    for name in ("cnn", "resnet"):
        model = make(name, (1, 28, 28), 10).eval()
        inputs = torch.randn(4, 1, 28, 28)
        with torch.no_grad():
            plain = model(inputs)
            last = model.to(memory_format=torch.channels_last)(inputs.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "changes", "message"),
    [
        ("mlp", (64,), {"hidden": [0]}, r"model\.hidden\[0\]: 0 "),
        ("mlp", (64,), {"hidden": [32, -1]}, r"model\.hidden\[1\]: -1 "),
        ("mlp", (64,), {"hidden": 128}, r"model\.hidden: 128 is not a list"),
        ("mlp", (64,), {"hidden": "128"}, r"model\.hidden: '128' is not a list"),
        ("mlp", (64,), {"hidden": [1.5]}, r"model\.hidden\[0\]: 1\.5 "),
        ("mlp", (64,), {"hidden": [True]}, r"model\.hidden\[0\]: True "),
        ("mlp", (64,), {"dropout": 1.5}, r"model\.dropout: 1\.5 .*\[0, 1\)"),
        ("mlp", (64,), {"dropout": 1}, r"model\.dropout: 1 "),
        ("mlp", (64,), {"dropout": "much"}, r"model\.dropout: 'much' "),
        ("mlp", (64,), {"activation": "relu6"}, r"model\.activation: 'relu6' .*relu, gelu, silu, tanh"),
        ("cnn", (13,), {}, r"model=cnn takes images .*\[13\].*model=mlp"),
        ("cnn", (1, 8, 8), {"channels": []}, r"model\.channels: \[\] "),
        ("cnn", (1, 8, 8), {"channels": [32, 0]}, r"model\.channels\[1\]: 0 "),
        ("cnn", (1, 8, 8), {"dense": [128]}, r"model\.dense: \[128\] "),
        ("cnn", (1, 8, 8), {"dropout": -0.1}, r"model\.dropout: -0\.1 "),
        ("resnet", (13,), {}, r"model=resnet takes images"),
        ("resnet", (1, 8, 8), {"depth": 18}, r"model\.depth: 18 is not 6 n \+ 2"),
        ("resnet", (1, 8, 8), {"depth": 2}, r"model\.depth: 2 "),
        ("resnet", (1, 8, 8), {"width": 0}, r"model\.width: 0 "),
    ],
)
def test_refuses_what_makes_no_model(name, shape, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(name, shape, 10, **changes)
    assert "\n" not in str(caught.value)
