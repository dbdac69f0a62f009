"""Losses from settings."""

import pytest
import torch
from loss_cases import CONF, OPTIONS, classes, numbers, option

from launcher.core.errors import ConfigError
from launcher.losses.loss import build_loss
from launcher.losses.per_sample import PerSample


def test_every_option_builds_and_is_tested_above():
    assert sorted(["binary_cross_entropy", "cross_entropy", "focal", "huber", "l1", "mse", "multi_margin"]) == OPTIONS
    for name in OPTIONS:
        lines = (CONF / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("# ") and lines[0].endswith(f"loss={name}")
        assert isinstance(
            build_loss(option(name), numbers() if name in ("mse", "l1", "huber") else classes()), PerSample
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
