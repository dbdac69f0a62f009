"""Values and weights per sample against torch's own means."""

import pytest
import torch
from loss_cases import OPTIONS, WEIGHTS, classes, mean_of_parts, numbers, option
from torch import nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.losses.loss import build_loss
from launcher.losses.per_sample import PerSample


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


def test_half_precision_is_computed_in_float32():
    outputs, targets = torch.randn(10, 4).bfloat16(), classes().train.targets
    for name in ("cross_entropy", "multi_margin", "focal", "binary_cross_entropy"):
        loss = build_loss(option(name), classes())
        torch.testing.assert_close(loss(outputs, targets)[0], loss(outputs.float(), targets)[0])


def test_own_mean_counts_by_samples():
    outputs, data = torch.randn(10, 4), classes()
    loss = build_loss({"_target_": f"{__name__}.OwnMean", "scale": 2.0}, data)  # num_classes comes from the data
    torch.testing.assert_close(
        mean_of_parts(loss, outputs, data.train.targets), 2 * F.cross_entropy(outputs, data.train.targets)
    )


def test_outputs_that_would_broadcast_are_refused():
    loss = build_loss(option("mse"), numbers(1))
    with pytest.raises(ConfigError, match=r"\[10, 1\].*\[10\]"):
        loss(torch.zeros(10, 1), torch.zeros(10))


class OwnMean(nn.Module):
    def __init__(self, scale: float, num_classes: int):
        super().__init__()
        self.scale, self.num_classes = scale, num_classes

    def forward(self, outputs, targets):
        return self.scale * F.cross_entropy(outputs, targets)


def test_binary_cross_entropy_of_classes_is_that_of_one_hot():
    outputs, data = torch.randn(10, 4), classes()
    hot = F.one_hot(data.train.targets, 4).float()
    mean = mean_of_parts(build_loss(option("binary_cross_entropy"), data), outputs, data.train.targets)
    torch.testing.assert_close(mean, F.binary_cross_entropy_with_logits(outputs, hot))
