"""Losses from settings."""

import pytest
import torch
from loss_cases import CONF, OPTIONS, classes, mean_of_parts, numbers, option
from torch import nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.losses.loss import build_loss
from launcher.losses.per_sample import PerSample


def test_every_option_builds_and_is_tested_above():
    assert (
        sorted(["auto", "binary_cross_entropy", "cross_entropy", "focal", "huber", "l1", "mse", "multi_margin"])
        == OPTIONS
    )
    for name in OPTIONS:
        lines = (CONF / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("# ") and lines[0].endswith(f"loss={name}")
        assert isinstance(
            build_loss(option(name), numbers() if name in ("mse", "l1", "huber") else classes()), PerSample
        )


def test_the_usual_loss_of_each_task():
    auto = option("auto")
    assert isinstance(build_loss(auto, numbers()).loss, torch.nn.HuberLoss)
    loss = build_loss(option("auto", weight="balanced", label_smoothing=0.1), classes()).loss
    expected = build_loss(option("cross_entropy", weight="balanced", label_smoothing=0.1), classes()).loss
    assert torch.equal(loss.weight, expected.weight) and loss.label_smoothing == expected.label_smoothing == 0.1
    labels = numbers(2, torch.ones(10, 2))
    labels.task = "multilabel"
    assert isinstance(build_loss(auto, labels).loss, torch.nn.BCEWithLogitsLoss)
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing is 0\.1: the loss of a regression task is HuberLoss"):
        build_loss(option("auto", label_smoothing=0.1), numbers())


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


@pytest.mark.parametrize(("name", "key"), [("cross_entropy", "weight"), ("multi_margin", "weight"), ("focal", "alpha")])
def test_balanced_weights_make_classes_count_the_same(name, key):
    loss = build_loss(option(name, **{key: "balanced"}), classes())
    weights = getattr(loss.loss, key)
    torch.testing.assert_close(weights, torch.tensor([10 / (4 * 4), 10 / (4 * 2), 10 / (4 * 3), 10 / 4]))
    counts = classes().class_counts
    torch.testing.assert_close(weights * counts, torch.full((4,), 2.5))
    assert key in dict(loss.loss.named_buffers())  # moves with .to(device)


def test_own_weights_are_used_and_balanced():
    outputs, data = torch.randn(10, 4), classes()
    loss = build_loss({"_target_": f"{__name__}.OwnWeights", "weight": "balanced"}, data)
    weight = 10 / (4 * data.class_counts.float())
    torch.testing.assert_close(
        mean_of_parts(loss, outputs, data.train.targets), F.cross_entropy(outputs, data.train.targets, weight)
    )


class OwnWeights(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none") * self.weight[targets]

    def weights(self, targets):
        return self.weight[targets]
