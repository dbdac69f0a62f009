"""What models refuse, and their groups of channels."""

import pytest
from model_options import make

from launcher.core.errors import ConfigError
from launcher.models.widths import group_norm


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (8, 1), (16, 1), (20, 1), (31, 1), (48, 3), (64, 4), (100, 5)]
)
def test_groups_have_16_channels_or_the_next_that_divides(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups and norm.num_channels == channels


@pytest.mark.parametrize(
    ("name", "shape", "changes", "message"),
    [
        ("mlp", (64,), {"activation": "relu6"}, r"model\.activation: 'relu6' .*relu, gelu, silu, tanh"),
        ("cnn", (13,), {}, r"model=cnn takes images .*\[13\].*model=mlp"),
        ("cnn", (1, 8, 8), {"channels": []}, r"model\.channels: \[\] "),
        ("cnn", (1, 8, 8), {"channels": [32, 0]}, r"model\.channels\[1\]: 0 "),
        ("cnn", (1, 8, 8), {"dense": [128]}, r"model\.dense: \[128\] "),
        ("resnet", (13,), {}, r"model=resnet takes images"),
        ("resnet", (1, 8, 8), {"depth": 18}, r"model\.depth: 18 is not 6 n \+ 2"),
        ("resnet", (1, 8, 8), {"depth": 2}, r"model\.depth: 2 "),
        ("resnet", (1, 8, 8), {"width": 0}, r"model\.width: 0 "),
    ],
)
def test_refuses_what_makes_no_model(name, shape, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(name, shape, 10, **changes)
    assert "\n" not in str(caught.value)
