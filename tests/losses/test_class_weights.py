"""Weights of classes."""

import pytest
import torch
from loss_cases import classes, mean_of_parts, option
from torch import nn
from torch.nn import functional as F

from launcher.losses.loss import build_loss


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
