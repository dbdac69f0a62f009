"""Any image classifier of torchvision by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.models.library import adapt, check_name
from launcher.models.widths import check_image


def create(input_shape: Sequence[int], num_outputs: int, name: str, norm: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a model that maps images [n, *input_shape] to outputs [n, num_outputs]. Nothing is downloaded.

    The settings are those of conf/model/torchvision.yaml. Images have three channels, or one: grey is shown as red,
    green and blue.
    """
    channels, _, _ = check_image("torchvision", input_shape)
    if channels not in (1, 3):
        raise ConfigError(
            f"model=torchvision takes images of 3 channels or 1, and the data give {channels}; pick model=timm."
        )
    models = import_extra("torchvision.models", "model=torchvision needs the package torchvision", "vision")
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
