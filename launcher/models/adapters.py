"""Adapters: a few parameters beside a model's own, which stay as they are. LoRA (Hu et al. 2021), by peft."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.models.weights import shown

NEED = "adapter=lora needs the package peft"
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)  # what peft knows, beside Conv1D of transformers
# They read the weights of their layers without calling these: an update would count nowhere, in silence.
BESIDE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def adapt(model: nn.Module, settings: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> list[str]:
    """Put the adapters of conf/adapter into a model, in place; nothing else of it is trained from then on.

    A layer `x` becomes a module that holds the layer as `x.base_layer` and its update as `x.lora_A` and `x.lora_B`,
    which at first is zero. On every rank the same generator draws them.

    Args:
        model: The bare model, with the weights that it begins with.
        settings: The group; of a run from before there was one, None.
        facts: What the model was told, of which the number of outputs and whether it is a language are looked at.

    Returns:
        Lines for the log.

    Raises:
        ConfigError: A pattern matches nothing, or what cannot be adapted.
    """
    if not settings or settings["name"] == "none":
        return []
    peft = import_extra("peft", NEED, "transformers")
    head = last_layer(model, facts.get("num_outputs"))
    targets = _targets(model, settings["target_modules"], head)
    whole = _whole(model, settings["modules_to_save"], None if "block" in facts else head)
    if both := [name for name in targets if any(_inside(name, other) for other in whole)]:
        raise ConfigError(
            f"adapter.target_modules, adapter.modules_to_save: both name {shown(both)}. It is adapted or trained whole."
        )
    how = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules="|".join(re.escape(name) for name in targets),  # a text is matched with whole names
    )
    try:
        peft.inject_adapter_in_model(how, model)
    except ValueError as error:
        raise ConfigError(f"adapter: {' '.join(str(error).split())[:300]}") from error
    for name in whole:
        model.get_submodule(name).requires_grad_(True)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    share = trained / sum(one.numel() for one in model.parameters())
    line = f"adapter    lora in {len(targets)} modules, {trained:,} parameters are trained ({share:.2%})"
    return [line + (f"; whole: {shown(whole)}" if whole else "")]


@contextmanager
def all_called(model: nn.Module) -> Iterator[None]:
    """Check that each adapted layer is called where the model is run in here, if it is.

    Some attentions, such as those of torchvision's Swin and timm's BEiT, read the weights of their layers instead.

    Raises:
        ConfigError: One is not: what its update learns would count nowhere.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    called: set[str] = set()
    ran: list[bool] = []  # that the model came to its end, which one without memory may not
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, module in adapted.items()
    ]
    if adapted:
        handles.append(model.register_forward_hook(lambda *_: ran.append(True)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if ran and (unused := [name for name in adapted if name not in called]):
        raise ConfigError(
            f"adapter.target_modules: {len(unused)} of {len(adapted)} layers are not called by the model, such as "
            f"{shown(unused[:3])}, and an update of them would count nowhere. Name others."
        )


def merged(model: nn.Module) -> nn.Module:
    """The same model with what its adapters learned added to its weights, in place, and without them."""
    if not any(hasattr(module, "base_layer") for module in model.modules()):
        return model
    layer = import_extra("peft.tuners.tuners_utils", NEED, "transformers").BaseTunerLayer
    for name, module in list(model.named_modules()):
        if isinstance(module, layer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def last_layer(model: nn.Module, outputs: Any) -> str | None:
    """The name of the last linear layer that gives the outputs; None where no such layer is there."""
    found = [name for name, module in model.named_modules() if name and getattr(module, "out_features", 0) == outputs]
    return found[-1] if found and isinstance(model.get_submodule(found[-1]), nn.Linear) else None


def _targets(model: nn.Module, patterns: str | Sequence[str], head: str | None) -> list[str]:
    """The modules to adapt."""
    modules = {name: module for name, module in model.named_modules() if name}
    tied = _tied(model)
    unfit = {
        name: f"{type(outer).__name__} {other} reads its weights directly"
        for other, outer in model.named_modules() if isinstance(outer, BESIDE)
        for name in modules if _inside(name, other)
    }  # fmt: skip
    unfit |= {name: "it shares its weights with another layer" for name in modules if name in tied}
    if head is not None:
        unfit[head] = "it is the last layer; name it in adapter.modules_to_save, to train all of it"
    linear = [name for name, one in modules.items() if isinstance(one, nn.Linear) or type(one).__name__ == "Conv1D"]
    if patterns == "all-linear":
        found = [name for name in linear if name not in unfit]
        if not found:
            raise ConfigError(
                f"adapter.target_modules=all-linear: {type(model).__name__} has no linear layer to adapt but its last. "
                f"Name others, such as convolutions, by patterns. There are: {shown(list(modules))}."
            )
        return found
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [name for name in modules if fnmatchcase(name, pattern)]
        fit = [name for name in matched if name in linear or isinstance(modules[name], LINEAR)]
        if not fit:
            raise ConfigError(
                f"adapter.target_modules: {pattern} matches no linear layer, convolution or embedding. "
                f"There are: {shown(linear or list(modules))}."
            )
        if bad := next((name for name in fit if name in unfit), None):
            raise ConfigError(f"adapter.target_modules: {pattern} matches {bad}, but {unfit[bad]}.")
        found += [name for name in fit if name not in found]
    return found


def _tied(model: nn.Module) -> set[str]:
    """Modules whose weight another module has as well."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _whole(model: nn.Module, patterns: Iterable[str] | None, head: str | None) -> list[str]:
    """The modules that are trained as they are."""
    if patterns is None:
        return [] if head is None else [head]
    modules, found = [name for name, _ in model.named_modules() if name], []
    for pattern in patterns:
        matched = [name for name in modules if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(f"adapter.modules_to_save: {pattern} matches no module. There are: {shown(modules)}.")
        found += [name for name in matched if name not in found]
    return found


def _inside(name: str, other: str) -> bool:
    """Whether a module is another one or a part of it."""
    return name == other or name.startswith(f"{other}.") or other == ""
