"""Multi-layer perceptron."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from launcher.core.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Fully connected layers on the flattened input, each followed by an activation and, in training, dropout."""

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, hidden: Sequence[int], activation: str, dropout: float
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"model.activation: {activation!r} is unknown; pick one of {', '.join(ACTIVATIONS)}.")
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        for width in hidden:
            layers += [nn.Linear(features, width), ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [n, *input_shape] to outputs [n, num_outputs]."""
        return self.layers(inputs)
