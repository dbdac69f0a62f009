"""The residual network."""

import pytest
import torch
from model_options import count
from torch import nn

from launcher.models.resnet import ResNet, StandardisedConv2d


@pytest.mark.parametrize(("depth", "blocks"), [(8, 3), (20, 9)])
def test_resnet_has_as_many_layers_as_its_depth(depth, blocks):
    model = ResNet((3, 32, 32), 10, depth=depth, width=16)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth == 2 * blocks + 2
    # 269,722 with shortcuts and an output that have no weights of their own for each shape and place (He et al. 2015,
    # table 6: 0.27 M): the 1x1 convolutions and their norms come on top, and 15 more places of the 16 of the output.
    if depth == 20:
        assert count(model) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64) + 15 * 64 * 10


def test_filters_are_standardised():
    convolution = StandardisedConv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    images, weight = torch.randn(2, 3, 7, 7, dtype=torch.float64), convolution.weight.detach()
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), correction=0, keepdim=True)
    expected = nn.functional.conv2d(images, (weight - mean) / (variance + 1e-6).sqrt(), stride=2, padding=1)
    torch.testing.assert_close(convolution(images), expected)
    convolution.weight.data.mul_(3).add_(1)  # which makes no difference but through the 1e-6
    torch.testing.assert_close(convolution(images), expected, rtol=1e-4, atol=1e-4)
