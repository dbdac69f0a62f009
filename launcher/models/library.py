"""What the models of a library lack: GroupNorm for BatchNorm, a first look at the data."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from launcher.core.errors import ConfigError
from launcher.models.widths import group_norm

NORMS = ("batch", "group")


def check_name(library: str, name: Any, known: Iterable[str], how: str) -> None:
    """Check that a library has a model of a name, else a ConfigError with the nearest names and how to list all."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"The nearest: {', '.join(near)}. " if near else ""
        raise ConfigError(
            f"model.name: {library} has no model {name!r} for classes of images. {hint}{how} lists all {len(names)}."
        )


def adapt(model: nn.Module, norm: Any, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Take GroupNorm for each BatchNorm where `norm` is `group`, then show a library's model one image.

    Raises:
        ConfigError: `norm` is unknown, or the model does not map an image of this shape to that many outputs.
    """
    if norm not in NORMS:
        raise ConfigError(f"model.norm: {norm!r} is unknown; pick batch (as the model has it) or group (GroupNorm).")
    if norm == "group":
        use_group_norm(model)
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"model.name: this model refuses images of {' x '.join(map(str, input_shape))}: {error} Pick another one, "
            "another data.image_size, or tell the model their size (of many in timm: +model.options.img_size)."
        ) from error
    finally:
        model.train()
    if not isinstance(outputs, Tensor) or outputs.shape != (1, num_outputs):
        found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(f"model.name: this model gives {found} for one image, not {[1, num_outputs]}; pick another.")
    return model


def use_group_norm(model: nn.Module) -> None:
    """Put GroupNorm in the place of each BatchNorm, with its initial scale and bias."""
    for name, module in list(model.named_children()):
        if not isinstance(module, _BatchNorm):
            use_group_norm(module)
            continue
        norm = group_norm(module.num_features)
        if module.affine:  # the last one of a residual block often starts at zero
            norm.load_state_dict({"weight": module.weight, "bias": module.bias})
        # Those of timm hold what comes after them.
        after = [getattr(module, part) for part in ("drop", "act") if hasattr(module, part)]
        setattr(model, name, nn.Sequential(norm, *after) if after else norm)
