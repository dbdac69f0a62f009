"""The perceptron."""

import pytest
import torch
from model_options import count
from torch import nn

from launcher.models.mlp import ACTIVATIONS, MLP


def test_mlp_equals_layers_written_out():
    model = MLP((1, 8, 8), 10, hidden=[32, 16], activation="gelu", dropout=0.0)
    first, second, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    inputs = torch.randn(6, 1, 8, 8)
    hidden = nn.functional.gelu(inputs.reshape(6, 64) @ first.weight.T + first.bias)
    hidden = nn.functional.gelu(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(model(inputs), hidden @ last.weight.T + last.bias)
    assert count(model) == 65 * 32 + 33 * 16 + 17 * 10
    assert count(MLP((64,), 10, hidden=[], activation="relu", dropout=0.0)) == 65 * 10


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_knows_each_activation(activation):
    model = MLP((4,), 3, hidden=[5], activation=activation, dropout=0.0)
    function = getattr(torch.nn.functional, activation) if activation != "tanh" else torch.tanh
    first, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    inputs = torch.randn(2, 4)
    torch.testing.assert_close(model(inputs), last(function(first(inputs))))
