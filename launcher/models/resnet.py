"""Residual network for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from launcher.errors import ConfigError
from launcher.models import check_image, check_width, group_norm


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        before: Channels that come in.
        after: Channels that go out.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = group_norm(after)
        self.convolution2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = group_norm(after)
        self.activation = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), group_norm(after))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [n, before, height, width] to [n, after, ceil(height / stride), ceil(width / stride)]."""
        hidden = self.activation(self.norm1(self.convolution1(inputs)))
        return self.activation(self.norm2(self.convolution2(hidden)) + self.shortcut(inputs))


class ResNet(nn.Module):
    """Residual network of three stages after He et al. (2015), section 4.2, with GroupNorm for BatchNorm.

    Each stage after the first halves the sides and doubles the channels; then comes the mean over the image
    and a linear layer. The last normalisation of each block starts at zero, so that each block starts as its
    shortcut (Goyal et al. 2017, section 5.1).

    Args:
        input_shape: (channels, height, width) of one image.
        num_outputs: Classes, or numbers to predict.
        depth: Layers with weights, 6 n + 2 for n blocks a stage: 8, 14, 20, 32, 44, 56, ...
        width: Channels of the first stage.

    Raises:
        ConfigError: The data are no images, or depth or width is outside its range.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, depth: int, width: int) -> None:
        super().__init__()
        channels, _, _ = check_image("resnet", input_shape)
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"model.depth: {depth!r} is not 6 n + 2 with n >= 1; pick 8, 14, 20, 32, 44 or 56.")
        first = check_width("model.width", width)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, first, 3, padding=1, bias=False),
            group_norm(first),
            nn.ReLU(),
        ]
        before = first
        for stage in range(3):
            after = first * 2**stage
            for number in range((depth - 2) // 6):
                layers.append(Block(before, after, stride=2 if stage > 0 and number == 0 else 1))
                before = after
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(before, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for block in self.features:
            if isinstance(block, Block):
                nn.init.zeros_(block.norm2.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [n, channels, height, width] to outputs [n, num_outputs]."""
        return self.output(self.features(inputs).mean(dim=(2, 3)))
