"""Weights that a library has published for a model, found in its cache on this machine; nothing is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def cached(settings: Mapping[str, Any]) -> Path:
    """The file with the weights that `model.pretrained=true` means.

    Of timm in the cache of Hugging Face or that of torch.hub, of torchvision in that of torch.hub: where the libraries
    themselves put what they download.

    Raises:
        ConfigError: The library has no weights for the model, or they are not there.
    """
    name, library = str(settings.get("name")), str(settings["_target_"]).split(".")[-2]
    places = _of_timm(name) if library == "timm" else _of_torchvision(name)
    if not places:
        raise ConfigError(f"model.pretrained=true: {library} has no weights for {name}. Pick another, or false.")
    if (found := next((place for place in places if place.is_file()), None)) is not None:
        return found
    how = f"timm.create_model({name!r}, pretrained=True)"
    if library != "timm":
        how = f"torchvision.models.get_model({name!r}, weights='DEFAULT')"
    raise ConfigError(
        f"model.pretrained=true: the weights of {name} are not in the cache of this machine ({places[-1]}), and "
        f"nothing is downloaded. Where there is a network, call {how} once, or name a file: model.checkpoint=FILE."
    )


def _of_timm(name: str) -> list[Path]:
    """Where the weights of a model of timm may be."""
    timm = import_extra("timm", "model=timm needs the package timm", "vision")
    hub = import_extra("huggingface_hub", "model=timm needs huggingface_hub", "vision")
    about = timm.models.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        return []
    places = [Path(about.file)] if about.file else []
    if about.hf_hub_id:
        names = [about.hf_hub_filename] if about.hf_hub_filename else HUB_FILES
        found = [hub.try_to_load_from_cache(about.hf_hub_id, one) for one in names]
        places += [Path(one) for one in found if isinstance(one, str)]
    if about.url:
        places.append(_in_hub(about.url))
    elif not places:
        cache = import_extra("huggingface_hub.constants", "model=timm needs huggingface_hub", "vision").HF_HUB_CACHE
        places.append(Path(cache) / f"models--{about.hf_hub_id.replace('/', '--')}")
    return places


def _of_torchvision(name: str) -> list[Path]:
    """Where the weights of a model of torchvision are."""
    models = import_extra("torchvision.models", "model=torchvision needs the package torchvision", "vision")
    try:
        return [_in_hub(models.get_model_weights(name).DEFAULT.url)]
    except (ValueError, AttributeError):  # no such model, which is said where it is built; no such weights
        return []


def _in_hub(url: str) -> Path:
    """Where torch.hub keeps what was at an address."""
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
