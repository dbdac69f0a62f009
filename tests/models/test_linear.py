"""The linear model."""

import torch
from model_options import count, make

from launcher.models.linear import Linear


def test_linear_is_the_affine_map():
    model = make("linear", (2, 3), 4)
    inputs = torch.randn(7, 2, 3)
    weight, bias = model.output.weight, model.output.bias
    torch.testing.assert_close(model(inputs), torch.einsum("kij,nij->nk", weight.view(4, 2, 3), inputs) + bias)
    assert count(Linear((2, 3), 4, bias=False)) == 24
