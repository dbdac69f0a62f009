"""Building the optimizer that the settings name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.config.components import accepted_names, build, locate
from launcher.core.errors import ConfigError
from launcher.optimizers.groups import groups_by_decay, groups_by_layer
from launcher.optimizers.lean_step import spare_the_compiler
from launcher.optimizers.muon import Muon


def build_optimizer(
    settings: Mapping[str, Any],
    model: nn.Module,
    lr_scale: float,
    decay_bias_and_norm: bool,
    layer_decay: float | None = None,
) -> Optimizer:
    """Build the optimizer that conf/optimizer describes.

    Args:
        settings: `_target_` and the constructor's arguments. Both `fused` and `foreach` null: fused where
            torch has it (1.6 to 6 times as fast as torch's default on a CPU, measured), else torch's default.
        model: Its parameters that require a gradient are optimized; it goes to a constructor that takes a `model`, too.
        lr_scale: The learning rate of every group is multiplied by it, > 0.
        decay_bias_and_norm: Whether weight decay applies to parameters of at most one dimension.
        layer_decay: The learning rate of each layer over that of the next deeper one, in (0, 1], the last layer's
            being the whole (Clark et al. 2020, ELECTRA, https://arxiv.org/abs/2003.10555, section 3.1); see
            `layers_of`. None: one for all.

    Raises:
        ConfigError: An argument is wrong, or nothing is to be trained.
    """
    spare_the_compiler()
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ConfigError("optimizer: the model has no parameter that requires a gradient: nothing to train.")
    fixed = {k: v for k, v in settings.items() if not (k in ("fused", "foreach") and v is None)}
    kind = locate(str(settings["_target_"]), "optimizer") if settings.get("_target_") else None
    if kind is not None and not {"fused", "foreach"} & set(fixed) and _takes_fused(kind, model, params):
        fixed["fused"] = True
    apart = kind is not None and not decay_bias_and_norm and bool(_weight_decay(kind, fixed))
    groups: Sequence[Any] = params
    if layer_decay is not None:
        groups = groups_by_layer(model, layer_decay, apart)
    elif apart:
        groups = groups_by_decay(params)
    try:
        optimizer = build("optimizer", fixed, groups, model=model)
    except RuntimeError as error:  # torch refuses fused on a device or beside another option
        raise ConfigError(f"optimizer: {settings['_target_']}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer._target_: {settings['_target_']!r} gives a {type(optimizer).__name__}, "
            "not a torch.optim.Optimizer."
        )
    for group in optimizer.param_groups:
        group["lr"] *= lr_scale * group.pop("layer_scale", 1.0)
    if "lr" in optimizer.defaults:
        optimizer.defaults["lr"] *= lr_scale
    return optimizer


def _takes_fused(kind: Callable[..., Any], model: nn.Module, params: Sequence[Tensor]) -> bool:
    """Whether a fused step works for this class and parameters, here and on the device they may go to."""
    known = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, Muon)
    if not torch.cuda.is_available():
        known += (torch.optim.Adagrad,)  # type: ignore[assignment]  # older torch has it fused on a CPU only
    if not (isinstance(kind, type) and issubclass(kind, known) and "fused" in (accepted_names(kind) or ())):
        return False
    sparse = any(getattr(m, "sparse", False) for m in model.modules())  # sparse gradients have no fused kernel
    devices = {"cpu", "cuda", "xpu", "mps", "meta"}
    return not sparse and all(p.is_floating_point() and p.device.type in devices for p in params)


def _weight_decay(kind: Callable[..., Any], settings: Mapping[str, Any]) -> float:
    """The weight decay that the settings or the constructor's default give; 0 where it takes none."""
    if "weight_decay" in settings:
        return settings["weight_decay"] or 0.0
    try:
        parameter = inspect.signature(kind).parameters.get("weight_decay")
    except ValueError:
        return 0.0
    return parameter.default if parameter is not None and isinstance(parameter.default, int | float) else 0.0
