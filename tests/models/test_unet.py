"""The U-Net: its parameters by hand, and an output for each pixel of an image of any size."""

import pytest
import torch
from model_options import count

from launcher.core.errors import ConfigError
from launcher.models.unet import UNet


def test_unet_has_the_parameters_of_its_description():
    down = [(3, 4), (4, 4), (4, 8), (8, 8)]
    up = [(8, 4), (4, 4)]
    convolutions = sum(9 * before * after + 2 * after for before, after in down + up)  # each with its GroupNorm
    assert count(UNet((3, 16, 16), 5, [4, 8])) == convolutions + 8 * 4 + (4 + 1) * 5
    assert count(UNet((3, 16, 16), 5, [4])) == 9 * 12 + 9 * 16 + 16 + 25


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (9, 31), (1, 1), (2, 3)])
def test_an_output_for_each_pixel_sees_those_around_it(size):
    torch.manual_seed(0)
    model, images = UNet((1, *size), 3, [4, 8, 8]), torch.randn(2, 1, *size, requires_grad=True)
    outputs = model(images)
    assert outputs.shape == (2, 3, *size)
    (gradient,) = torch.autograd.grad(outputs[0, 0, -1, -1], images)
    assert gradient[0].count_nonzero() > gradient[0].numel() / 2 and not gradient[1].any(), "of its own image alone"


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((8,), [4], "model=unet takes images"),
        ((1, 8, 8), [], "no list of widths"),
        ((1, 8, 8), [4, 0], r"channels\[1\]"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(shape, channels, message):
    with pytest.raises(ConfigError, match=message):
        UNet(shape, 3, channels)
