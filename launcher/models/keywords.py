"""Batches that are dicts, for models whose forward takes their entries by name: `forward(self, input_ids, mask)`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from launcher.core.errors import ConfigError


class Parameters(NamedTuple):
    """What a forward takes."""

    names: frozenset[str]  # that can be given by name
    required: tuple[str, ...]  # of those, the ones without a default
    rest: bool  # whether it takes any other name as well (`**kwargs`)


def take_keywords(model: nn.Module) -> nn.Module:
    """Let `model({"a": a, "b": b})` mean `model(a=a, b=b)` where its forward names these parameters.

    Everything else that calls the model, such as DDP, torch.compile, an evaluation or an export, goes on to give it one
    object. It is a hook, so that the names in the state dict stay. A Sequential and those of the launcher's own models
    that have one parameter take tensors alone, and go without: a hook costs 2 us a call.

    Returns:
        The same model.
    """
    if not isinstance(model, nn.Module) or isinstance(model, nn.Sequential | torch.jit.ScriptModule):
        return model
    found = parameters_of(model)
    alone = type(model).__module__.startswith("launcher.") and found is not None and len(found.names) == 1
    if found is not None and not alone:
        model.register_forward_pre_hook(partial(_by_name, found), with_kwargs=True)
    return model


def parameters_of(model: nn.Module) -> Parameters | None:
    """What the forward of a model takes; None where Python cannot tell.

    The models of transformers take any name and leave most of them unused: only those that they list count.
    """
    forward: Callable[..., Any] = getattr(model, "_orig_mod", model).forward  # that of a compiled one
    try:
        every = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    named = [one for one in every if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    required = tuple(one.name for one in named if one.default is one.empty)
    listed = any(base.__module__.startswith("transformers.") for base in type(model).__mro__)
    rest = any(one.kind is one.VAR_KEYWORD for one in every) and not listed
    return Parameters(frozenset(one.name for one in named), required, rest)


def _by_name(
    takes: Parameters, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The hook: a dict alone becomes keyword arguments, or stays as it is where the forward takes it whole.

    Raises:
        ConfigError: It is neither.
    """
    if len(arguments) != 1 or named or not isinstance(arguments[0], Mapping):
        return None
    (given,) = arguments
    if (takes.rest or given.keys() <= takes.names) and all(name in given for name in takes.required):
        return (), dict(given)
    strange = [str(key) for key in given if key not in takes.names]
    # One parameter is left for the dict itself: the only one that is needed, or where none is, any
    whole = len(takes.required) == 1 and bool(strange) if takes.required else len(strange) == len(given)
    if whole and not any(name in given for name in takes.required):
        return None
    missing = [name for name in takes.required if name not in given]
    what = f"has no parameter {', '.join(strange)}" if strange and not takes.rest else "lacks a value"
    raise ConfigError(
        f"model: the inputs are a dict of {', '.join(map(str, given))}, and the forward of {type(module).__name__} "
        f"{what}{f' (needed: {chr(44).join(missing)})' if missing else ''}. Its parameters are "
        f"{', '.join(sorted(takes.names)) or 'none'}: name them as the keys of a sample are, or have one for the dict."
    )
