"""Building the optimizer that the settings name, with its groups of parameters: by weight decay, and by layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.config.components import UNSTATED, accepted_names, build, default_of, locate
from launcher.core.errors import ConfigError
from launcher.optimizers.lean_step import spare_the_compiler
from launcher.optimizers.muon import Muon
from launcher.optimizers.own_groups import split_off


def build_optimizer(
    settings: Mapping[str, Any],
    model: nn.Module,
    lr_scale: float,
    decay_bias_and_norm: bool,
    layer_decay: float | None = None,
    own: Sequence[Mapping[str, Any]] = (),
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
        own: Groups with a learning rate and weight decay of their own; see `split_off`. Their rates are multiplied by
            lr_scale and by layer_decay's share as every other.

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
    decay = UNSTATED if kind is None else fixed.get("weight_decay", default_of(kind, "weight_decay"))
    apart = decay is not UNSTATED and bool(decay) and not decay_bias_and_norm
    groups: Sequence[Any] = params
    if layer_decay is not None:
        groups = _groups_by_layer(model, layer_decay, apart)
    elif apart:
        groups = _groups_by_decay(params)
    groups = split_off(groups, model, own, kind)
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


def layers_of(model: nn.Module) -> dict[str, int]:
    """How deep each parameter lies: 0 at the input.

    A model of timm's says it by its `group_matcher`, as timm.optim.param_groups_layer_decay asks it. Any other model is
    cut into its children in the order in which they were made, a Sequential or ModuleList among them into its own; a
    child that is all there is is looked into. A child with vectors alone (a normalisation) belongs to the layer before
    it, and parameters of the model itself (a position embedding) to the first.
    """
    names = [name for name, _ in model.named_parameters()]
    if callable(matcher := getattr(model, "group_matcher", None)):
        try:
            from timm.models import group_parameters
        except ImportError as error:
            raise ConfigError(
                f"layer_decay: the depths of a {type(model).__name__} are timm's to tell, which does not import "
                f"({error}): pip install timm"
            ) from error
        found = group_parameters(model, matcher(coarse=False), reverse=True)
        return {name: found.get(name, max(found.values())) for name in names}
    blocks = _blocks(model, "")
    while len(blocks) == 1 and any(True for _ in blocks[0][1].children()):
        ((prefix, block),) = blocks
        blocks = _blocks(block, prefix)
    layers, depth = dict.fromkeys(names, 0), -1
    for prefix, block in blocks:
        depth += depth < 0 or any(parameter.dim() > 1 for parameter in block.parameters())
        layers |= {name: depth for name in names if name.startswith(prefix)}
    return layers


def _blocks(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Children that have parameters, with the prefix of their names; containers cut into theirs."""
    blocks = []
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            blocks += _blocks(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            blocks.append((f"{prefix}{name}.", child))
    return blocks


def _groups_by_layer(model: nn.Module, layer_decay: float, apart: bool) -> list[dict[str, Any]]:
    """Groups of parameters, the deepest layer first: its learning rate is the one that a run reports."""
    layers = layers_of(model)
    deepest = max(layers.values())
    groups = []
    for layer in range(deepest, -1, -1):
        params = [p for name, p in model.named_parameters() if p.requires_grad and layers[name] == layer]
        found: list[dict[str, Any]] = _groups_by_decay(params) if apart else [{"params": params}]
        groups += [group | {"layer_scale": layer_decay ** (deepest - layer)} for group in found if group["params"]]
    return groups


def _groups_by_decay(params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Groups with and without weight decay: of parameters with more than one dimension, and of the others."""
    decayed, plain = [p for p in params if p.dim() > 1], [p for p in params if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
