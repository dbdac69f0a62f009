"""Small convolutional network for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.models.widths import check_image, check_width, group_norm


class CNN(nn.Module):
    """3x3 convolutions, each halved by pooling and normalised, then a dense layer with dropout before and after it.

    Each stage is convolution, max-pooling, GroupNorm, ReLU. Pooling comes before the normalisation, which
    then sees a quarter of the values: on a CPU GroupNorm costs about as much as the convolution. The windows
    do not overlap, so that the gradient of each value has one source and is the same in every bit also on a
    GPU. A side that has come down to 1 is no longer halved.
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, channels: Sequence[int], dense: int, dropout: float
    ) -> None:
        super().__init__()
        before, height, width = check_image("cnn", input_shape)
        if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
            raise ConfigError(f"model.channels: {channels!r} is no list of widths; give one, such as [32,64].")
        stages = [check_width(f"model.channels[{i}]", width) for i, width in enumerate(channels)]
        check_width("model.dense", dense)
        layers: list[nn.Module] = []
        for after in stages:
            window = (min(2, height), min(2, width))
            # No bias: the normalisation would subtract most of it again.
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.MaxPool2d(window)]
            layers += [group_norm(after), nn.ReLU()]
            before, height, width = after, height // window[0], width // window[1]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(before * height * width, dense),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dense, num_outputs),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images [n, channels, height, width] to outputs [n, num_outputs]."""
        return self.head(self.features(inputs))
