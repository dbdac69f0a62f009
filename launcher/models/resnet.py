"""Residual network for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from launcher.core.errors import ConfigError
from launcher.models.widths import check_image, check_width, group_norm


class StandardisedConv2d(nn.Conv2d):
    """A convolution without bias whose filters are standardised to mean 0 and variance 1 (Qiao et al. 2019).

    With GroupNorm after it a network learns as fast as with BatchNorm (Kolesnikov et al. 2020, section 3.1, BiT).
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [n, in_channels, height, width] to [n, out_channels, ...]."""
        # Not by layer_norm, whose gradient forgets the memory format: DDP would copy it and warn.
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-6)
        return functional.conv2d(inputs, weight, None, self.stride, self.padding)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = StandardisedConv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = group_norm(after)
        self.convolution2 = StandardisedConv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = group_norm(after)
        self.activation = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            convolution = StandardisedConv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, group_norm(after))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [n, before, height, width] to [n, after, ceil(height / stride), ceil(width / stride)]."""
        hidden = self.activation(self.norm1(self.convolution1(inputs)))
        return self.activation(self.norm2(self.convolution2(hidden)) + self.shortcut(inputs))


class ResNet(nn.Module):
    """Residual network of three stages after He et al. (2015), section 4.2, with GroupNorm for BatchNorm.

    The first stage has `width` channels; each other halves the sides and doubles the channels. Then come the means of
    2x2 squares and a linear layer: where a thing is in a small image says what it is, which one mean over the whole
    of it forgets. The `depth`, of layers with weights, is 6 n + 2 for n blocks a stage.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, depth: int, width: int) -> None:
        super().__init__()
        channels, *sides = check_image("resnet", input_shape)
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"model.depth: {depth!r} is not 6 n + 2 with n >= 1; pick 8, 14, 20, 32, 44 or 56.")
        first = check_width("model.width", width)
        convolution = StandardisedConv2d(channels, first, 3, padding=1, bias=False)
        layers: list[nn.Module] = [convolution, group_norm(first), nn.ReLU()]
        before = first
        for stage in range(3):
            after = first * 2**stage
            for number in range((depth - 2) // 6):
                layers.append(Block(before, after, stride=2 if stage > 0 and number == 0 else 1))
                before = after
        self.features = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        cells = [-(-side // 8) for side in sides]  # halved by two stages and by the pooling, each rounded up
        self.output = nn.Linear(before * cells[0] * cells[1], num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [n, channels, height, width] to outputs [n, num_outputs]."""
        return self.output(self.pool(self.features(inputs)).flatten(1))
