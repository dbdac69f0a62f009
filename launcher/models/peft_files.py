"""Adapters as the package peft keeps them: adapter_model.safetensors and adapter_config.json, for its own loaders."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.models.adapters import NEED
from launcher.models.weights import shown

PREFIX = "base_model.model."  # what peft puts before each name of the base


def of_model(model: nn.Module) -> tuple[dict[str, Tensor], Any]:
    """What the files hold: the tensors of an adapter and of the layers trained whole, by peft's names; its settings.

    Args:
        model: With its adapters, as `adapters.adapt` leaves it, and what they learned.

    Raises:
        ConfigError: It has no adapter, or training changed what peft's files have no place for.
    """
    if not hasattr(model, "peft_config"):
        raise ConfigError("format=adapter: this run has no adapter; format=safetensors holds the whole model.")
    trained = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    whole = dict.fromkeys(name.rpartition(".")[0] for name in trained if ".lora_" not in name)
    lost = [name for name, _ in model.named_buffers() if name.endswith("running_mean")]
    if lost or "" in whole:
        what = f"running statistics, which training changed: {shown(lost)}" if lost else "parameters in no module"
        raise ConfigError(
            f"format=adapter: peft's files have no place for {what}. format=safetensors holds the whole model."
        )
    known: Any = model
    settings = copy.deepcopy(known.peft_config["default"])
    settings.modules_to_save, settings.inference_mode = [*whole] or None, True
    return {f"{PREFIX}{name.replace('.default', '', 1)}": one.contiguous() for name, one in trained.items()}, settings


def read(model: nn.Module, directory: Path) -> nn.Module:
    """What peft makes of the base of an adapted model and of the files; the layers trained whole come from these.

    Args:
        model: As for `of_model`; it is changed.
        directory: With the files.
    """
    peft = import_extra("peft", NEED, "transformers")
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.zero_()
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config
    loaded: nn.Module = peft.PeftModel.from_pretrained(model, str(directory)).eval()
    return loaded
