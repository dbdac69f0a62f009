"""Models of torchvision by their names; more in test_library.py."""

import pytest
import torch

from launcher.core.errors import ConfigError
from launcher.models.torchvision import create

pytestmark = pytest.mark.versions

pytest.importorskip("torchvision")


def test_grey_images_are_shown_as_red_green_and_blue():
    model = create((1, 32, 32), 7, "resnet18", "group", {}).eval()
    grey = torch.rand(2, 1, 32, 32)
    (hook,) = model._forward_pre_hooks.values()
    assert torch.equal(hook(model, (grey,))[0], grey.expand(-1, 3, -1, -1)) and model(grey).shape == (2, 7)


def test_two_channels_are_refused():
    with pytest.raises(ConfigError, match=r"takes images of 3 channels or 1, and the data give 2; pick model=timm"):
        create((2, 32, 32), 7, "resnet18", "batch", {})
