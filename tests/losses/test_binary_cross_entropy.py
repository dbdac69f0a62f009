"""Binary cross-entropy of classes."""

import torch
from loss_cases import classes, mean_of_parts, option
from torch.nn import functional as F

from launcher.losses.loss import build_loss


def test_binary_cross_entropy_of_classes_is_that_of_one_hot():
    outputs, data = torch.randn(10, 4), classes()
    hot = F.one_hot(data.train.targets, 4).float()
    mean = mean_of_parts(build_loss(option("binary_cross_entropy"), data), outputs, data.train.targets)
    torch.testing.assert_close(mean, F.binary_cross_entropy_with_logits(outputs, hot))
