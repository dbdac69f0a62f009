"""An image and its mirror: two looks at each sample in an evaluation."""

from typing import TYPE_CHECKING, Any

from torch import nn

from launcher.core.errors import ConfigError

if TYPE_CHECKING:
    from launcher.data.source import Data


class Mirrored(nn.Module):
    """A model whose outputs are the mean of those for images [n, channels, height, width] and for their mirrors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Any) -> Any:
        """Mean of two outputs [n, num_outputs]."""
        return (self.model(images) + self.model(images.flip(-1))) / 2


def check_mirror(data: "Data") -> None:
    """Check that the data are images, else a ConfigError."""
    if len(data.input_shape) != 3:
        raise ConfigError(
            f"test_time_flip: data={data.name} gives inputs of shape {list(data.input_shape)}, which are no images "
            "[channels, height, width] to mirror; set it to false."
        )
