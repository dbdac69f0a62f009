"""Any image classifier of torchvision by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from launcher.core.errors import ConfigError
from launcher.models.checks import check_image
from launcher.models.library import adapt, check_name


def create(
    input_shape: Sequence[int],
    num_outputs: int,
    name: str,
    norm: str,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build a model that maps images [n, *input_shape] to outputs [n, num_outputs]. Nothing is downloaded.

    Args:
        input_shape: (3, height, width) of one image, or (1, height, width): grey is shown as red, green and blue.
        num_outputs: Classes, or numbers to predict.
        name: Of the model, such as `resnet18`; torchvision.models.list_models() lists them.
        norm: `batch`: as the model has it; `group`: GroupNorm in the place of each BatchNorm.
        options: More arguments of the model, such as `dropout`.

    Raises:
        ConfigError: torchvision is missing, it has no such model, or the model does not take the images or an
            option.
    """
    channels, _, _ = check_image("torchvision", input_shape)
    if channels not in (1, 3):
        raise ConfigError(
            f"model=torchvision takes images of 3 channels or 1, and the data give {channels}; pick model=timm."
        )
    try:
        from torchvision import models
    except ImportError as error:
        raise ConfigError(
            f"model=torchvision needs the package torchvision, which does not import ({error}): "
            "pip install 'hydra-accelerate-launcher[vision]'"
        ) from error
    known = models.list_models(module=models)
    check_name("torchvision", name, known, "python -c 'from torchvision import models as m; print(m.list_models(m))'")
    more = dict(options)
    if name in ("googlenet", "inception_v3"):  # else they give several outputs in training
        more = {"aux_logits": False, "init_weights": True} | more
    model = models.get_model(name, weights=None, num_classes=num_outputs, **more)
    if channels == 1:
        model.register_forward_pre_hook(_repeat)
    return adapt(model, norm, input_shape, num_outputs)


def _repeat(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Grey images as red, green and blue alike."""
    return (inputs[0].expand(-1, 3, -1, -1), *inputs[1:])
