"""Checks of settings against their schema, and of settings that go together."""

import copy
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from launcher.config import messages
from launcher.config.components import COMPONENTS, locate
from launcher.config.direction import direction
from launcher.config.tree import UNSTATED, get, show_value, unquoted
from launcher.core.errors import ConfigError
from launcher.core.extras import DISTRIBUTION

if TYPE_CHECKING:
    from pydantic import BaseModel

    from launcher.config.setting import Setting

NOT_SHARDED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("mixed_precision", ("fp16",), "its gradient scaler would look at one part alone. Use bf16, or strategy=ddp."),
    ("exact_across_devices", (True,), "it needs the whole gradient on each device. Use strategy=ddp."),
    ("compile", (True,), "the two are not supported together. Use compile=false, or strategy=ddp."),
    ("channels_last", (True,), "parts of parameters lie in torch's usual layout. Use channels_last=false."),
    (
        "wandb.watch",
        ("gradients", "parameters", "all"),
        "histograms are made of whole tensors. Use wandb.watch=false, or strategy=ddp.",
    ),
    ("batch.max_per_device", ("auto",), "a device out of memory would leave the others in a gather. Give a number."),
    (
        "optimizer._target_",
        ("launcher.optimizers.muon.Muon", "torch.optim.Muon", "torch.optim.Adafactor", "torch.optim.LBFGS"),
        "it needs whole matrices, and a device has a part of each. Use optimizer=adamw, or strategy=ddp.",
    ),
)


def filled(settings: Mapping[str, Any], program: str = "train") -> dict[str, Any]:
    """Settings with the neutral value of each that an earlier launcher did not know.

    What a component's class needs and does not get is filled in by `components.build`, which knows the class.
    """
    from launcher.config.schema import SCHEMAS

    whole = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for key, known in SCHEMAS[program].items():
        group, _, leaf = key.partition(".")
        if known.absent is UNSTATED or group in COMPONENTS:
            continue
        node = whole.setdefault(group, {}) if leaf else whole
        chosen = node.get("name", {"strategy": "ddp"}.get(group)) if isinstance(node, dict) else None
        if isinstance(node, dict) and known.marked("only") in (None, chosen):
            node.setdefault(leaf or group, copy.deepcopy(known.absent))
    return whole


def check_settings(settings: Mapping[str, Any], program: str = "train") -> None:
    """Check the type and range of every known setting, and the settings that must fit each other.

    Args:
        settings: The composed and resolved config as plain dicts and lists.
        program: The name of its primary config.

    Raises:
        ConfigError: The first one that does not fit.
    """
    from launcher.config.schema import MODELS, SCHEMAS

    _check_types(settings, MODELS[program], SCHEMAS[program])
    if program in ("train", "find_lr"):
        _check_environment(settings, SCHEMAS[program])
        _check_together(settings)
        _check_sharded(settings)


def check_options(options: Mapping[str, Any], name: str, prefix: str = "hydra.launcher") -> None:
    """Check the settings of a plugin of Hydra, which are at `prefix` in the config, by their model in sweep_schema.py.

    Raises:
        ConfigError: The first one that does not fit.
    """
    from launcher.config import sweep_schema
    from launcher.config.setting import flat

    model = getattr(sweep_schema, name)
    _check_types(options, model, dict(flat(model)), f"{prefix}.")


def _check_types(
    settings: Mapping[str, Any], model: "type[BaseModel]", schema: "Mapping[str, Setting]", prefix: str = ""
) -> None:
    """Check each setting by itself."""
    from pydantic import ValidationError

    try:
        model.model_validate(dict(settings))
    except ValidationError as error:
        place = [str(part) for part in error.errors(include_url=False)[0]["loc"]]
    else:
        return
    # Behind the setting stands which of its types, or which item of a list, does not fit.
    key = next(name for end in range(len(place), 0, -1) if (name := ".".join(place[:end])) in schema)
    known, value = schema[key], get(settings, key)
    if value is UNSTATED:
        raise ConfigError(f"{key} is missing from the config: {needed(known)}.")
    shown = f"{prefix}{key}={show_value(value)}"
    if known.section is None:
        raise ConfigError(f"{shown}: must be {known.words}.{_type_hint(value, known)}")
    main = f"{key}.{known.section.main}"
    meant = f"{main}={show_value(value)}"
    means = main in schema and value not in (None, False) and schema[main].fits(value)
    meant = f"{meant} sets one of them, " if means and not known.words.startswith(meant) else ""
    raise ConfigError(f"{shown}: this is a group of settings; {meant}{known.words}.")


def needed(known: "Setting") -> str:
    """What a wrong value is answered with."""
    return known.words if known.section else f"set it to {known.words}"


def _type_hint(value: Any, known: "Setting") -> str:
    """How a value is written that has the right letters and the wrong type."""
    if isinstance(value, bool) and known.words != "true or false":
        return " Quote a text that YAML reads as something else: '\"no\"'."
    if isinstance(value, str) and known.fits(unquoted(value)):
        return (
            " This is a text: leave out its quotes, or where it comes from the environment, write "
            "'${oc.decode:${oc.env:NAME}}'."
        )
    return ""


def _check_environment(settings: Mapping[str, Any], schema: "Mapping[str, Setting]") -> None:
    """Check what settings take from the environment, and what they need to be installed."""
    if settings["wandb"]["mode"] != "disabled":
        for variable, key in (("WANDB_PROJECT", "wandb.project"), ("WANDB_RUN_ID", "wandb.id")):
            if (value := os.environ.get(variable)) and not schema[key].fits(value):
                raise ConfigError(f"{variable}={value} in the environment: must be {schema[key].words}.")
    for name in settings["trackers"]:
        if "." in name:
            own_tracker(name)
        elif name != "csv" and importlib.util.find_spec(name) is None:
            package = f"'{DISTRIBUTION}[tensorboard]'" if name == "tensorboard" else name
            raise ConfigError(f"trackers: {name} is not installed: pip install {package}.")


def own_tracker(name: str) -> Any:
    """The class that a dotted name in `trackers` is of.

    Raises:
        ConfigError: It does not import, or is no tracker: also what a stranger's run directory may name.
    """
    found = locate(name, "trackers")
    if not isinstance(found, type) or not all(callable(getattr(found, one, None)) for one in ("row", "flush", "close")):
        raise ConfigError(f"trackers: {name} is no class with the methods row, flush and close.")
    return found


def _check_sharded(settings: Mapping[str, Any]) -> None:
    """Check what strategy=fsdp does not go with."""
    if settings["strategy"]["name"] == "fsdp":
        for key, unfit, reason in NOT_SHARDED:
            if (value := get(settings, key)) in unfit:
                raise ConfigError(f"{key}={show_value(value)} with strategy=fsdp: {reason}")


def check_known(plain: Mapping[str, Any], hydra: DictConfig, schema: "Mapping[str, Setting]", text: str) -> None:
    """Refuse settings that nobody reads: neither the launcher, nor a `${...}` in `text`, all texts of the config.

    A component takes what its class takes, and says so itself.
    """
    tops = {key.partition(".")[0] for key in schema}
    sections = {key.partition(".")[0] for key in schema if "." in key} - set(COMPONENTS)
    names = [key for key in plain if key not in tops]
    names += [
        f"{top}.{key}" for top in sections if isinstance(plain.get(top), dict) for key in plain[top]
        if f"{top}.{key}" not in schema
    ]  # fmt: skip
    for name in names:
        last = re.escape(name.rpartition(".")[2])
        if re.search(rf"\$\{{[^}}]*(?<![\w]){last}(?![\w])", text):
            continue
        if name == "experiment" or (isinstance(plain.get(name), dict) and str(name) in hydra.runtime.choices):
            raise ConfigError(
                f"{name}={hydra.runtime.choices.get(name)}: nothing reads {name}.{next(iter(plain[name]), '')}. "
                "Where its settings are those of the run, its file begins with the line `# @package _global_`."
            )
        value = plain.get(name) if "." not in name else None
        given = show_value(value) if isinstance(value, str | int | float | None) else None
        raise ConfigError(f"{name}: there is no such setting.{messages.hint(str(name), given, list(schema))}")


def _check_together(settings: Mapping[str, Any]) -> None:
    """Check what a training run's settings are to each other."""
    if settings["clip_grad_norm"] is not None and settings["clip_grad_value"] is not None:
        raise ConfigError(
            f"clip_grad_norm={settings['clip_grad_norm']} and clip_grad_value={settings['clip_grad_value']}: both clip "
            "the gradient. Set one of them to null."
        )
    if settings["optimizer"].get("fused") and settings["optimizer"].get("foreach"):
        raise ConfigError("optimizer.fused and optimizer.foreach are both true: set one, or neither.")
    watched = settings["early_stopping"]["metric"]
    if watched is not None and settings["eval_every"] is None:
        raise ConfigError(
            f"early_stopping.metric={watched}: eval_every=null never evaluates. "
            "Use eval_every=epoch, or early_stopping.metric=null."
        )
    for metric_key, mode_key in (("early_stopping.metric", "mode"), ("checkpoint.best", "best_mode")):
        node = metric_key.partition(".")[0]
        metric, mode = get(settings, metric_key), get(settings, f"{node}.{mode_key}")
        right = None if metric is None else direction(metric)
        if right not in (None, mode):
            raise ConfigError(f"{node}.{mode_key}={mode}: takes {metric} the wrong way. Use {node}.{mode_key}={right}.")
    if settings["device"] == "cpu" and settings["mixed_precision"] == "fp16":
        raise ConfigError(messages.FP16_ON_CPU)
