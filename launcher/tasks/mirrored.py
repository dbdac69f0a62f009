"""An image and its mirror: two looks at each sample in an evaluation."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from launcher.batching.stream import first_sample
from launcher.core.errors import ConfigError
from launcher.tasks.supervised import Supervised, tensor_of
from launcher.tasks.task import Task

if TYPE_CHECKING:
    from launcher.data.source import Data


class Mirrored(nn.Module):
    """A model whose outputs are the mean of those for images [n, channels, height, width] and for their mirrors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Any) -> Any:
        """Mean of two outputs [n, num_outputs]; of pixels, [n, num_outputs, height, width], with one turned back."""
        outputs, mirrored = tensor_of(self.model(images)), tensor_of(self.model(images.flip(-1)))
        return (outputs + (mirrored.flip(-1) if mirrored.dim() == 4 else mirrored)) / 2


def check_mirror(data: "Data", task: Task) -> None:
    """Check that the data are images and the task measures the model's outputs alone, else a ConfigError."""
    if not isinstance(task, Supervised):
        raise ConfigError(
            f"test_time_flip: the task {type(task).__name__} does not compare outputs with targets alone, and what it "
            "measures has no mean of two looks; set it to false."
        )
    images = len(data.input_shape) == 3
    inputs = first_sample(data.train)[0] if images else None
    if not isinstance(inputs, Tensor):
        what = f"of shape {list(data.input_shape)}" if not images else f"in a {type(inputs).__name__}"
        raise ConfigError(
            f"test_time_flip: data={data.name} gives inputs {what}, which are no images [channels, height, width] to "
            "mirror; set it to false."
        )
