"""Reference models: shapes, parameter counts in closed form, independence of samples, refusals."""

import pytest
import torch
from model_options import CONF, make
from torch import nn

ELSEWHERE = {"timm", "torchvision", "transformer", "transformers", "encoder", "unet"}  # in test files of their own
NAMES = sorted({path.stem for path in CONF.glob("*.yaml")} - ELSEWHERE)
IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 5), (1, 1, 1)]
TABLES = [(4,), (13,)]


def cases() -> list:
    return [
        (name, shape) for name in NAMES for shape in IMAGES + TABLES if len(shape) == 3 or name in ("linear", "mlp")
    ]


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


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_dropout_works_in_training_alone(name):
    model = make(name, (1, 8, 8), 10, dropout=0.5)
    inputs = torch.randn(4, 1, 8, 8)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


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


def test_channels_last_gives_the_same():
    for name in ("cnn", "resnet"):
        model = make(name, (1, 28, 28), 10).eval()
        inputs = torch.randn(4, 1, 28, 28)
        with torch.no_grad():
            plain = model(inputs)
            last = model.to(memory_format=torch.channels_last)(inputs.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
