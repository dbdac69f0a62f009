"""Linear model: logistic regression on classes, least squares on numbers."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Linear(nn.Module):
    """One affine map of the flattened input, of any shape, with a constant per output where `bias` says so."""

    def __init__(self, input_shape: Sequence[int], num_outputs: int, bias: bool) -> None:
        super().__init__()
        self.output = nn.Linear(math.prod(input_shape), num_outputs, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [n, *input_shape] to outputs [n, num_outputs]."""
        return self.output(inputs.flatten(1))
