"""The module in which three numbers of each rank travel with the gradient of a model; see reduction.py.

It stands apart from there: a rank in a forward is at work, one in reduction.py waits for others (pulse.py).
"""

from typing import Any

import torch
from torch import Tensor, nn


class Carrier(nn.Module):
    """A model, and three numbers whose gradient DDP averages with that of the model, in a bucket that travels anyway.

    Args:
        model: To be trained.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.carried = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Any) -> tuple[Any, Tensor]:
        """The model's outputs and, for DDP to see that it takes part, what rides along."""
        return self.model(inputs), self.carried.view(3)  # a leaf itself would count as unused
