"""Activation checkpointing: what some modules computed is forgotten and computed again in the backward.

Chen et al. 2016, "Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from launcher.core.errors import ConfigError


def recompute(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Let modules keep their inputs alone, and give their names; dropout draws the same again.

    Args:
        model: The bare model, after its optimizer is built: names inside of it change, those of its state do not.
        patterns: As for `finetune.freeze`. Of modules that lie in each other the outermost one counts.

    Raises:
        ConfigError: A pattern matches no module, or a module has running statistics, which would be updated twice.
    """
    from launcher.core.compat import checkpoint_wrapper

    modules = {name: module for name, module in model.named_modules() if name}
    chosen: list[str] = []
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ConfigError(
                f"activation_checkpointing: {pattern} matches no module. There are: {', '.join(modules)}."
            )
    for name in modules:  # outer ones come first
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if not inside and any(fnmatchcase(name, pattern) for pattern in patterns):
            chosen.append(name)
    for name in chosen:
        for module in modules[name].modules():
            if getattr(module, "running_mean", None) is not None and module.training:
                raise ConfigError(
                    f"activation_checkpointing: {name} holds a {type(module).__name__}, whose running statistics would "
                    "be updated twice a step. Leave it out, freeze it, or use GroupNorm or LayerNorm."
                )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, checkpoint_wrapper(modules[name]))
    return chosen
