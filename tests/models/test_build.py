"""Models that cannot be built for the data at hand."""

import pytest
from torch import nn

from launcher.core.errors import ConfigError
from launcher.models.build import build_model


class Late(nn.Module):
    """A layer that finds out its inputs at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(3)


class Grey(nn.Module):
    """Takes the facts of images, and one that nobody knows."""

    def __init__(self, in_channels: int, depth: int) -> None:
        super().__init__()


def test_a_layer_without_a_shape_is_refused():
    with pytest.raises(ConfigError, match=r"model: Late has parameters without a shape .* such as layer.weight"):
        build_model({"_target_": f"{__name__}.Late"}, {"in_features": 4})


@pytest.mark.parametrize(
    ("name", "facts", "right"),
    [
        ("mlp.MLP", {"block": 8, "num_outputs": 9}, "a stream of tokens. .*model=transformer"),
        ("encoder.Encoder", {"block": 8, "num_outputs": 9}, "a stream of tokens. .*model=transformer"),
        ("cnn.CNN", {"vocab_size": 8, "num_outputs": 9}, "texts of any length. .*model=encoder"),
        ("transformer.Transformer", {"input_shape": (4,), "in_features": 4, "num_outputs": 2}, "numbers. .*model=mlp"),
    ],
)
def test_a_model_of_other_samples_is_refused_with_one_that_fits(name, facts, right):
    with pytest.raises(ConfigError, match=f"model: launcher.models.{name} needs .*{right}"):
        build_model({"_target_": f"launcher.models.{name}"}, facts)


def test_what_only_the_settings_can_give_is_asked_for():
    with pytest.raises(ConfigError, match=r"needs depth, .*Set model.depth"):
        build_model({"_target_": f"{__name__}.Grey"}, {"in_channels": 1, "input_shape": (1, 4, 4)})
