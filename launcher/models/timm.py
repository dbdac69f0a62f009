"""Any image model of timm (PyTorch Image Models, Wightman 2019) by its name."""

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
    drop_rate: float,
    norm: str,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build a model that maps images [n, *input_shape] to outputs [n, num_outputs]. Nothing is downloaded.

    Args:
        input_shape: (channels, height, width) of one image; any number of channels.
        num_outputs: Classes, or numbers to predict.
        name: Of the model, such as `resnet18`; timm.list_models() lists them.
        drop_rate: Dropout before the last layer, in [0, 1).
        norm: `batch`: as the model has it; `group`: GroupNorm in the place of each BatchNorm.
        options: More arguments of timm.create_model, such as `drop_path_rate` or `img_size`.

    Raises:
        ConfigError: timm is missing, it has no such model, or the model does not take the images or an option.
    """
    channels, _, _ = check_image("timm", input_shape)
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"model=timm needs the package timm, which does not import ({error}): "
            "pip install 'hydra-accelerate-launcher[vision]'"
        ) from error
    check_name("timm", name, timm.list_models(), "python -c 'import timm; print(timm.list_models())'")
    model = timm.create_model(
        name, pretrained=False, num_classes=num_outputs, in_chans=channels, drop_rate=drop_rate or None, **options
    )
    return adapt(model, norm, input_shape, num_outputs)
