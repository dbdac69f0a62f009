"""Checks of settings against their schema, and of settings that go together."""

import copy
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from launcher.config import messages
from launcher.config.direction import direction
from launcher.config.rules import FLAG, UNSTATED, Rule, Section
from launcher.config.schema import COMPONENTS, FOUNDING, FP16_ON_CPU, NOT_SHARDED, OF_STRATEGY, SCHEMA
from launcher.config.tree import show_value, unquoted
from launcher.core.errors import ConfigError


def filled(settings: Mapping[str, Any], schema: Mapping[str, Rule] = SCHEMA) -> dict[str, Any]:
    """Settings with the neutral value of each that an earlier launcher did not know.

    What a component's class needs and does not get is filled in by `components.build`, which knows the class.
    """
    whole = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for key, rule in schema.items():
        group, _, leaf = key.partition(".")
        if rule.absent is UNSTATED or group in COMPONENTS:
            continue
        if not leaf:
            whole.setdefault(group, copy.deepcopy(rule.absent))
            continue
        node = whole.setdefault(group, {})
        if isinstance(node, dict) and not (key in OF_STRATEGY and OF_STRATEGY[key] != node.get("name", "ddp")):
            node.setdefault(leaf, copy.deepcopy(rule.absent))
    return whole


def check_settings(settings: Mapping[str, Any], schema: Mapping[str, Rule] = SCHEMA) -> None:
    """Check the type and range of every known setting, and the settings that must fit each other.

    Args:
        settings: The composed and resolved config as plain dicts and lists.
        schema: Dotted name to rule; a name without a dot must be there.

    Raises:
        ConfigError: The first one that does not fit.
    """
    missing = object()
    for key, rule in schema.items():
        value: Any = settings
        for part in key.split("."):
            value = value.get(part, missing) if isinstance(value, Mapping) else missing
        if value is missing:
            if "." not in key or key in FOUNDING:
                raise ConfigError(f"{key} is missing from the config: {needed(rule)}.")
        elif isinstance(rule, Section) and not rule.fits(value):
            means = rule.main in schema and value not in (None, False) and schema[rule.main].fits(value)
            meant = f"{rule.main}={show_value(value)}"
            meant = f"{meant} sets one of them, " if means and not rule.words.startswith(meant) else ""
            raise ConfigError(f"{key}={show_value(value)}: this is a group of settings; {meant}{rule.words}.")
        elif not rule.fits(value):
            raise ConfigError(f"{key}={show_value(value)}: must be {rule.words}.{_type_hint(value, rule)}")
    if "wandb.project" in schema and settings["wandb"]["mode"] != "disabled":
        for variable, key in (("WANDB_PROJECT", "wandb.project"), ("WANDB_RUN_ID", "wandb.id")):
            if (value := os.environ.get(variable)) and not schema[key].fits(value):
                raise ConfigError(f"{variable}={value} in the environment: must be {schema[key].words}.")
    if "epochs" in schema:
        _check_together(settings)
    if settings.get("device") == "cpu" and settings.get("mixed_precision") == "fp16":
        raise ConfigError(FP16_ON_CPU)
    if "tensorboard" in settings.get("trackers", ()) and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "trackers: tensorboard is not installed: pip install 'hydra-accelerate-launcher[tensorboard]'."
        )
    if (settings.get("strategy") or {}).get("name") == "fsdp":
        for key, unfit, reason in NOT_SHARDED:
            value = settings
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value in unfit:
                raise ConfigError(f"{key}={show_value(value)} with strategy=fsdp: {reason}")


def needed(rule: Rule) -> str:
    """What a wrong value is answered with."""
    return rule.words if isinstance(rule, Section) else f"set it to {rule.words}"


def _type_hint(value: Any, rule: Rule) -> str:
    """How a value is written that has the right letters and the wrong type."""
    if isinstance(value, bool) and rule.words != FLAG.words:
        return " Quote a text that YAML reads as something else: '\"no\"'."
    if isinstance(value, str) and rule.fits(unquoted(value)):
        return (
            " This is a text: leave out its quotes, or where it comes from the environment, write "
            "'${oc.decode:${oc.env:NAME}}'."
        )
    return ""


def check_known(plain: Mapping[str, Any], hydra: DictConfig, schema: Mapping[str, Rule], text: str) -> None:
    """Refuse settings that nobody reads: neither the launcher, nor a `${...}` elsewhere in the config.

    A component takes what its class takes, and says so itself.

    Args:
        plain: The settings before `${...}` are resolved.
        hydra: Hydra's node.
        schema: Of what the launcher reads.
        text: All texts of the config, Hydra's node included.

    Raises:
        ConfigError: The first of them, and what may have been meant.
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
    watched = settings.get("early_stopping") or {}
    if watched.get("metric") is not None and settings["eval_every"] is None:
        raise ConfigError(
            f"early_stopping.metric={watched['metric']}: eval_every=null never evaluates. "
            "Use eval_every=epoch, or early_stopping.metric=null."
        )
    for metric_key, mode_key in (("early_stopping.metric", "mode"), ("checkpoint.best", "best_mode")):
        node, _, key = metric_key.partition(".")
        chosen = settings.get(node) or {}
        metric, mode = chosen.get(key), chosen.get(mode_key)
        right = None if metric is None else direction(metric)
        if right not in (None, mode):
            raise ConfigError(f"{node}.{mode_key}={mode}: takes {metric} the wrong way. Use {node}.{mode_key}={right}.")
