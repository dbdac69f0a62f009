"""Any image model of timm (PyTorch Image Models, Wightman 2019) by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from launcher.core.extras import import_extra
from launcher.models.library import adapt, check_name
from launcher.models.widths import check_image


def create(
    input_shape: Sequence[int], num_outputs: int, name: str, drop_rate: float, norm: str, options: Mapping[str, Any]
) -> nn.Module:
    """Build a model that maps images [n, *input_shape] to outputs [n, num_outputs]. Nothing is downloaded.

    The settings are those of conf/model/timm.yaml; images have any number of channels.
    """
    channels, _, _ = check_image("timm", input_shape)
    timm = import_extra("timm", "model=timm needs the package timm", "vision")
    names = "list_pretrained" if "." in str(name) else "list_models"  # with the name of weights behind it, or without
    check_name("timm", name, getattr(timm, names)(), f"python -c 'import timm; print(timm.{names}())'")
    model = timm.create_model(
        name, pretrained=False, num_classes=num_outputs, in_chans=channels, drop_rate=drop_rate or None, **options
    )
    return adapt(model, norm, input_shape, num_outputs)
