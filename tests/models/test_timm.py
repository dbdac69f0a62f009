"""Models of timm by their names; more in test_library.py."""

import pytest
import torch

from launcher.core.errors import ConfigError
from launcher.models.timm import create

pytestmark = pytest.mark.versions

pytest.importorskip("timm")


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels_are_taken(channels):
    model = create((channels, 32, 32), 7, "resnet18", drop_rate=0.25, norm="group", options={})
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7) and model.drop_rate == 0.25


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.name: timm has no model 'resnet_18'.*resnet18"):
        create((3, 32, 32), 7, "resnet_18", 0.0, "batch", {})
