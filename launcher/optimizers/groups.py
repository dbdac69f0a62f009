"""Groups of parameters: with and without weight decay, and by layer for layer-wise learning-rate decay."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from launcher.core.errors import ConfigError


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


def groups_by_layer(model: nn.Module, layer_decay: float, apart: bool) -> list[dict[str, Any]]:
    """Groups of parameters, the deepest layer first: its learning rate is the one that a run reports."""
    layers = layers_of(model)
    deepest = max(layers.values())
    groups = []
    for layer in range(deepest, -1, -1):
        params = [p for name, p in model.named_parameters() if p.requires_grad and layers[name] == layer]
        found: list[dict[str, Any]] = groups_by_decay(params) if apart else [{"params": params}]
        groups += [group | {"layer_scale": layer_decay ** (deepest - layer)} for group in found if group["params"]]
    return groups


def groups_by_decay(params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Groups with and without weight decay: of parameters with more than one dimension, and of the others."""
    decayed, plain = [p for p in params if p.dim() > 1], [p for p in params if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
