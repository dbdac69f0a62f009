"""The model that settings name, as everything calls it: in training, in an evaluation, and where a run is read back."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from launcher.config import components
from launcher.core.errors import ConfigError
from launcher.models.keywords import take_keywords
from launcher.models.pretrained import cached

FILES = ("checkpoint", "pretrained")  # settings of our models that name a file of weights


def build_model(settings: Mapping[str, Any], facts: Mapping[str, Any], begins: bool = False) -> nn.Module:
    """Build the model that conf/model describes.

    Args:
        settings: The group; `checkpoint`, a file of weights, is left aside.
        facts: What its constructor may ask for by name.
        begins: Whether it begins with weights that its library keeps beside its configuration; else whoever calls this
            brings them, from a checkpoint.

    Raises:
        ConfigError: As for `components.build`.
    """
    described = without_checkpoint(settings) if begins else without_file(settings)
    _check_kind(described, facts)
    model: nn.Module = components.build("model", described, **facts)
    if unmade := [name for name, one in model.named_parameters() if is_lazy(one)]:
        raise ConfigError(
            f"model: {type(model).__name__} has parameters without a shape before its first call, such as {unmade[0]}. "
            "Give its layers their sizes (Linear, not LazyLinear): in_features and in_channels are among what a model "
            "is told of the data."
        )
    return take_keywords(model)


def _check_kind(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse a model whose constructor needs what samples of another kind have, else a ConfigError."""
    if not settings.get("_target_"):
        return
    target, right = str(settings["_target_"]), "mlp"
    needed = set(components.required_names(components.locate(target, "model"))) - settings.keys() - facts.keys()
    if "block" in facts:
        what, right = "a stream of tokens", "transformer"
    elif "vocab_size" in facts:
        what, right = "texts of any length", "encoder"
    else:
        what = "numbers" if "in_channels" not in facts else "images"
    if found := needed & {"input_shape", "in_features", "vocab_size", "block"}:
        raise ConfigError(
            f"model: {target} needs {', '.join(sorted(found))}, which the data does not have, whose samples are "
            f"{what}. Use a model for these, such as model={right}, or other data."
        )


def kept_facts(model: nn.Module) -> dict[str, Any]:
    """What is to be known beside the settings to build a model again where the files that described it are gone."""
    kept = getattr(model, components.KEPT, None)
    return {components.KEPT: kept} if isinstance(kept, dict) else {}


def files_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The files that the weights begin with, by the setting that names them; None where it names none.

    Raises:
        ConfigError: `pretrained` weights are not on this machine.
    """
    if not is_ours(settings):
        return {}
    found = {"model.checkpoint": settings["checkpoint"]} if "checkpoint" in settings else {}
    wanted = settings.get("pretrained", False)
    if not isinstance(wanted, bool):
        raise ConfigError(f"model.pretrained={wanted}: must be true or false.")
    return found | ({"model.pretrained": str(cached(settings))} if wanted else {})


def without_checkpoint(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model without the file that its weights begin with, which training/finetune.py reads."""
    return {key: value for key, value in settings.items() if key not in FILES or not is_ours(settings)}


def without_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same, and without weights that the model's library would read."""
    plain = without_checkpoint(settings)
    return plain | {"weights": False} if is_ours(settings) and "weights" in plain else plain


def is_ours(settings: Mapping[str, Any]) -> bool:
    """Whether what the settings describe is made by code of the launcher."""
    return str(settings.get("_target_")).startswith("launcher.models.")
