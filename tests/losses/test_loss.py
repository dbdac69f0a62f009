"""Losses against torch's own means, closed forms and half precision."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.data import Data, TensorSplit
from launcher.losses.focal import FocalLoss
from launcher.losses.loss import PerSample, build_loss

CONF = Path(__file__).parents[2] / "conf" / "loss"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
WEIGHTS = [0.2, 1.0, 3.0, 0.0]


def classes(labels=(0, 0, 0, 0, 1, 1, 2, 2, 2, 3), k: int = 4) -> Data:
    part = TensorSplit(torch.zeros(len(labels), 2), torch.tensor(labels))
    return Data("labels", "classification", (2,), k, part, part, part)


def numbers(d: int = 3, targets: torch.Tensor | None = None) -> Data:
    part = TensorSplit(torch.zeros(10, 2), torch.rand(10, d) if targets is None else targets)
    return Data("numbers", "regression", (2,), d, part, part, part)


def option(name: str, **changes):
    return OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes)


def mean_of_parts(loss: PerSample, outputs, targets, splits=(5, 3, 2)) -> torch.Tensor:
    """The mean as the engine takes it: sums over ragged micro-batches, one division at the end."""
    total, weight = 0.0, 0.0
    for part_outputs, part_targets in zip(outputs.split(splits), targets.split(splits), strict=True):
        values, weights = loss(part_outputs, part_targets)
        assert values.shape == (len(part_targets),) and values.dtype == torch.float32
        total = total + values.sum()
        weight = weight + (len(values) if weights is None else weights.sum())
    return total / weight


@pytest.mark.parametrize(
    ("name", "changes", "whole"),
    [
        ("cross_entropy", {}, nn.CrossEntropyLoss()),
        ("cross_entropy", {"label_smoothing": 0.1}, nn.CrossEntropyLoss(label_smoothing=0.1)),
        ("cross_entropy", {"weight": WEIGHTS}, nn.CrossEntropyLoss(torch.tensor(WEIGHTS))),
        (
            "cross_entropy",
            {"weight": WEIGHTS, "label_smoothing": 0.2},
            nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.2),
        ),
        ("multi_margin", {}, nn.MultiMarginLoss()),
        (
            "multi_margin",
            {"p": 2, "margin": 0.5, "weight": WEIGHTS},
            nn.MultiMarginLoss(p=2, margin=0.5, weight=torch.tensor(WEIGHTS)),
        ),
        ("focal", {"gamma": 0}, nn.CrossEntropyLoss()),
        ("focal", {"gamma": 0, "alpha": WEIGHTS}, nn.CrossEntropyLoss(torch.tensor(WEIGHTS))),
    ],
)
def test_parts_of_classification_give_torch_mean_and_gradient(name, changes, whole):
    torch.manual_seed(0)
    data, loss = classes(), build_loss(option(name, **changes), classes())
    outputs = (3 * torch.randn(10, 4)).requires_grad_()
    expected = whole(outputs, data.train.targets)
    (gradient,) = torch.autograd.grad(expected, outputs)
    mean = mean_of_parts(loss, outputs, data.train.targets)
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(mean, outputs)[0], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "changes", "whole"),
    [
        ("mse", {}, nn.MSELoss()),
        ("l1", {}, nn.L1Loss()),
        ("huber", {"delta": 0.3}, nn.HuberLoss(delta=0.3)),
        ("binary_cross_entropy", {}, nn.BCEWithLogitsLoss()),
        (
            "binary_cross_entropy",
            {"pos_weight": [1.0, 2.0, 0.5]},
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5])),
        ),
    ],
)
def test_parts_of_regression_give_torch_mean(name, changes, whole):
    torch.manual_seed(0)
    outputs, targets = torch.randn(10, 3), torch.rand(10, 3)
    mean = mean_of_parts(build_loss(option(name, **changes), numbers()), outputs, targets)
    torch.testing.assert_close(mean, whole(outputs, targets), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_output_that_is_nan_gives_a_loss_that_is_nan(name):
    """torch's margins take it for the best of all outputs: 0."""
    data = numbers() if name in ("mse", "l1", "huber") else classes(k=3, labels=[0, 1, 2])
    outputs, targets = torch.randn(3, 3), torch.rand(3, 3) if data.task == "regression" else torch.tensor([0, 1, 2])
    outputs[1, 0] = torch.nan
    values, _ = build_loss(option(name), data)(outputs, targets)
    assert values.isnan().tolist() == [False, True, False]


def test_every_option_builds_and_is_tested_above():
    assert sorted(["binary_cross_entropy", "cross_entropy", "focal", "huber", "l1", "mse", "multi_margin"]) == OPTIONS
    for name in OPTIONS:
        lines = (CONF / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("# ") and lines[0].endswith(f"loss={name}")
        assert isinstance(
            build_loss(option(name), numbers() if name in ("mse", "l1", "huber") else classes()), PerSample
        )


def test_binary_cross_entropy_of_classes_is_that_of_one_hot():
    outputs, data = torch.randn(10, 4), classes()
    hot = F.one_hot(data.train.targets, 4).float()
    mean = mean_of_parts(build_loss(option("binary_cross_entropy"), data), outputs, data.train.targets)
    torch.testing.assert_close(mean, F.binary_cross_entropy_with_logits(outputs, hot))


def test_tokens_and_ignored_targets_give_torch_mean():
    torch.manual_seed(0)
    outputs, targets = torch.randn(10, 4, 7), torch.randint(4, (10, 7))
    targets[:, 5:], targets[3] = -100, -100
    for whole in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.1)):
        expected = whole(outputs, targets)
        torch.testing.assert_close(mean_of_parts(PerSample(whole), outputs, targets), expected)
    values, weights = PerSample(nn.CrossEntropyLoss())(outputs, targets)
    assert weights is not None and weights.tolist() == [5, 5, 5, 0, 5, 5, 5, 5, 5, 5]  # valid tokens
    torch.testing.assert_close(values[0], F.cross_entropy(outputs[:1], targets[:1], reduction="sum"))
    flat = torch.tensor([0, 1, 2, 2, 3, 0, 2, 1, 1, 2])
    whole = nn.CrossEntropyLoss(ignore_index=2)
    expected = whole(outputs[..., 0], flat)
    torch.testing.assert_close(mean_of_parts(PerSample(whole), outputs[..., 0], flat), expected)


def test_probability_targets_give_torch_mean():
    torch.manual_seed(0)
    outputs, targets = torch.randn(10, 4), torch.rand(10, 4).softmax(1)
    whole = nn.CrossEntropyLoss(torch.tensor(WEIGHTS))
    expected = whole(outputs, targets)
    torch.testing.assert_close(mean_of_parts(PerSample(whole), outputs, targets), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_formula(gamma):
    torch.manual_seed(0)
    outputs, targets = 2 * torch.randn(50, 4, dtype=torch.float64), torch.randint(4, (50,))
    alpha = torch.tensor(WEIGHTS, dtype=torch.float64)
    p = outputs.softmax(1)[torch.arange(50), targets]
    formula = -alpha[targets] * (1 - p) ** gamma * p.log()
    values = FocalLoss(gamma, WEIGHTS)(outputs, targets)
    torch.testing.assert_close(values, formula.float(), rtol=1e-5, atol=1e-6)
    plain = FocalLoss(gamma)(outputs, targets)
    torch.testing.assert_close(plain, (-((1 - p) ** gamma) * p.log()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_is_finite_at_extreme_logits(dtype, gamma):
    outputs = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, 0.0]]).to(dtype).requires_grad_()
    values = FocalLoss(gamma)(outputs, torch.zeros(4, dtype=torch.int64))
    half = 0.5**gamma * torch.log(torch.tensor(2.0))
    wrong = 2 * outputs.detach()[0, 0].float()  # 1e4 as the dtype holds it
    torch.testing.assert_close(values, torch.stack([torch.tensor(0.0), wrong, half, half]))
    values.sum().backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all()
    torch.testing.assert_close(outputs.grad[0], torch.zeros(2, dtype=dtype))
    torch.testing.assert_close(outputs.grad[1], torch.tensor([-1.0, 1.0], dtype=dtype))


def test_half_precision_is_computed_in_float32():
    outputs, targets = torch.randn(10, 4).bfloat16(), classes().train.targets
    for name in ("cross_entropy", "multi_margin", "focal", "binary_cross_entropy"):
        loss = build_loss(option(name), classes())
        torch.testing.assert_close(loss(outputs, targets)[0], loss(outputs.float(), targets)[0])


@pytest.mark.parametrize(("name", "key"), [("cross_entropy", "weight"), ("multi_margin", "weight"), ("focal", "alpha")])
def test_balanced_weights_make_classes_count_the_same(name, key):
    loss = build_loss(option(name, **{key: "balanced"}), classes())
    weights = getattr(loss.loss, key)
    torch.testing.assert_close(weights, torch.tensor([10 / (4 * 4), 10 / (4 * 2), 10 / (4 * 3), 10 / 4]))
    counts = classes().class_counts
    torch.testing.assert_close(weights * counts, torch.full((4,), 2.5))
    assert key in dict(loss.loss.named_buffers())  # moves with .to(device)


class OwnMean(nn.Module):
    def __init__(self, scale: float, num_classes: int):
        super().__init__()
        self.scale, self.num_classes = scale, num_classes

    def forward(self, outputs, targets):
        return self.scale * F.cross_entropy(outputs, targets)


class OwnWeights(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none") * self.weight[targets]

    def weights(self, targets):
        return self.weight[targets]


def test_own_mean_counts_by_samples():
    outputs, data = torch.randn(10, 4), classes()
    loss = build_loss({"_target_": f"{__name__}.OwnMean", "scale": 2.0}, data)  # num_classes comes from the data
    torch.testing.assert_close(
        mean_of_parts(loss, outputs, data.train.targets), 2 * F.cross_entropy(outputs, data.train.targets)
    )


def test_own_weights_are_used_and_balanced():
    outputs, data = torch.randn(10, 4), classes()
    loss = build_loss({"_target_": f"{__name__}.OwnWeights", "weight": "balanced"}, data)
    weight = 10 / (4 * data.class_counts.float())
    torch.testing.assert_close(
        mean_of_parts(loss, outputs, data.train.targets), F.cross_entropy(outputs, data.train.targets, weight)
    )


@pytest.mark.parametrize(
    ("settings", "data", "words"),
    [
        (option("mse"), classes(), ["MSELoss", "classification", "cross_entropy"]),
        (option("cross_entropy"), numbers(), ["CrossEntropyLoss", "regression", "mse"]),
        (option("focal"), numbers(), ["regression", "huber"]),
        (option("cross_entropy", weight=[1.0, 2.0]), classes(), ["loss.weight", "2 numbers", "4"]),
        (option("cross_entropy", weight=[1.0, 2.0, -1.0, 1.0]), classes(), ["loss.weight", "-1.0", ">= 0"]),
        (option("cross_entropy", weight=[1.0, "a", 1.0, 1.0]), classes(), ["loss.weight", "'a'"]),
        (option("focal", alpha=0.25), classes(), ["loss.alpha", "0.25", "list of 4"]),
        (option("focal", alpha="inverse"), classes(), ["loss.alpha", "inverse", "balanced"]),
        (option("focal", alpha="balanced"), classes(k=5), ["loss.alpha", "class 4", "[4, 2, 3, 1, 0]"]),
        (option("focal", gamma=-1), classes(), ["loss.gamma", "-1", ">= 0"]),
        (option("multi_margin", p=3), classes(), ["p=3"]),
        (option("huber", delta=0), numbers(), ["delta"]),
        (option("cross_entropy", label_smoothing=2.0), classes(), ["label_smoothing", "2.0"]),
        (option("cross_entropy", reduction="sum"), classes(), ["loss.reduction", "sum"]),
        (option("cross_entropy", smooth=1), classes(), ["loss.smooth", "label_smoothing"]),
        (option("binary_cross_entropy"), numbers(targets=torch.full((10, 3), 2.0)), ["0 and 1", "2..2"]),
        ({"_target_": "collections.Counter"}, classes(), ["Counter", "torch.nn.Module"]),
        ({"_target_": "torch.nn.CrossEntropy"}, classes(), ["torch.nn.CrossEntropy"]),
        ({}, classes(), ["loss._target_"]),
    ],
)
def test_wrong_settings_are_named(settings, data, words):
    with pytest.raises(ConfigError) as raised:
        build_loss(settings, data)
    for word in words:
        assert word in str(raised.value)


def test_outputs_that_would_broadcast_are_refused():
    loss = build_loss(option("mse"), numbers(1))
    with pytest.raises(ConfigError, match=r"\[10, 1\].*\[10\]"):
        loss(torch.zeros(10, 1), torch.zeros(10))
