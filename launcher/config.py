"""Composition of conf/, the typed schema of its settings, and every check that needs no device.

Nothing here imports torch, so that a wrong setting is answered in well under a second.
"""

import argparse
import copy
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hydra import main as hydra_main
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.conf import HydraConf
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from launcher import messages
from launcher.accelerate_flags import adopt, parent_command
from launcher.direction import direction
from launcher.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# --- The schema: what a value may be -------------------------------------------------------------------------------


UNSTATED: Any = object()


@dataclass(frozen=True)
class Rule:
    """What a setting may be: a predicate, and the words for it.

    Attributes:
        fits: Whether a value may be.
        words: What may be.
        absent: What a config means that was made before there was this setting, by an earlier launcher; UNSTATED where
            none was.
    """

    fits: Callable[[Any], bool]
    words: str
    absent: Any = UNSTATED

    def or_null(self) -> "Rule":
        """The same, and null as well."""
        return Rule(lambda value: value is None or self.fits(value), f"{self.words}, or null")

    def or_word(self, *words: str) -> "Rule":
        """The same, and some words as well."""
        return Rule(lambda value: value in words or self.fits(value), f"{self.words}, or {' or '.join(words)}")

    def neutral(self, value: Any) -> "Rule":
        """The same, absent in the configs of earlier launchers, which did what this value does."""
        return replace(self, absent=value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def whole(least: int) -> Rule:
    """A whole number of at least `least`."""
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**63,
        f"a whole number of at least {least}",
    )


def above(bound: float) -> Rule:
    """A finite number greater than `bound`."""
    return Rule(lambda v: _is_number(v) and bound < v < float("inf"), f"a number greater than {bound:g}")


def at_least(bound: float) -> Rule:
    """A finite number of at least `bound`."""
    return Rule(lambda v: _is_number(v) and bound <= v < float("inf"), f"a number of at least {bound:g}")


def between(low: float, high: float) -> Rule:
    """A number from `low` (inclusive) to `high` (exclusive)."""
    return Rule(lambda v: _is_number(v) and low <= v < high, f"a number from {low:g} to below {high:g}")


def share() -> Rule:
    """A number from 0 to 1, both inclusive."""
    return Rule(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")


def one_of(*words: str) -> Rule:
    """One of some words."""
    return Rule(lambda v: v in words and not isinstance(v, bool), "one of " + ", ".join(words))


def list_of(rule: Rule, what: str) -> Rule:
    """A list whose items all fit a rule."""
    return Rule(lambda v: isinstance(v, list) and all(rule.fits(item) for item in v), f"a list of {what}")


@dataclass(frozen=True)
class Section(Rule):
    """Settings with a name in common.

    Attributes:
        main: The one that is meant where somebody gives a value to all; none where there is no such one.
    """

    main: str = ""


def section(main: str, off: str) -> Section:
    """The rule of a section, and a sentence on how it is switched off or what stands in its place."""
    return Section(lambda v: isinstance(v, Mapping), off, main=main)


def text_without(characters: str, longest: int) -> Rule:
    """A text that W&B takes as a name."""
    words = f"a text of at most {longest} characters, without any of {' '.join(characters)}"
    return Rule(lambda v: isinstance(v, str) and 0 < len(v) <= longest and not set(v) & set(characters), words)


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a text")
ANYTHING = Rule(lambda v: True, "anything")  # that what is built of it checks
WATCHED = ("gradients", "parameters", "all")
EVERY = whole(1).or_word("epoch").or_null()

SCHEMA: dict[str, Rule] = {
    "epochs": whole(1),
    "max_steps": whole(1).or_null().neutral(None),
    "max_time": Rule(lambda v: parse_duration(v) is not None, 'seconds above 0, or a text such as "90m"')
    .or_null()
    .neutral(None),
    "seed": whole(0),
    "mixed_precision": one_of("no", "bf16", "fp16").neutral("no"),
    "clip_grad_norm": above(0).or_null().neutral(None),
    "clip_grad_value": above(0).or_null().neutral(None),
    "log_grad_norm": FLAG.neutral(False),
    "ema_decay": between(0, 1).or_null().neutral(None),
    "init_from": TEXT.or_null().neutral(None),
    "freeze": list_of(TEXT, "patterns of parameter names, such as [layers.0.*]").neutral([]),
    "layer_decay": Rule(lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and at most 1")
    .or_null()
    .neutral(None),
    "activation_checkpointing": Rule(
        lambda v: v is False or (isinstance(v, list) and v != [] and all(TEXT.fits(name) for name in v)),
        "false, or a list of patterns of module names, such as [layers.*]",
    ).neutral(False),
    "sampling": one_of("shuffle", "balanced").neutral("shuffle"),
    "early_stopping": section("early_stopping.metric", "early_stopping.metric=null switches it off"),
    "early_stopping.metric": TEXT.or_null().neutral(None),
    "early_stopping.mode": one_of("min", "max").neutral("min"),
    "early_stopping.patience": whole(1).neutral(5),
    "early_stopping.min_delta": at_least(0).neutral(0),
    "mixup": section("mixup.alpha", "mixup.alpha=0 and mixup.cutmix_alpha=0 switch it off"),
    "mixup.alpha": at_least(0).neutral(0),
    "mixup.cutmix_alpha": at_least(0).neutral(0),
    "mixup.prob": share().neutral(1),
    "mixup.switch_prob": share().neutral(0.5),
    "test_time_flip": FLAG.neutral(False),
    "exact_across_devices": FLAG.neutral(False),
    "canonical_shards": whole(1).neutral(4),
    "divergence": section("divergence.action", "divergence.action=stop ends the run at the first one"),
    "divergence.action": one_of("stop", "rollback").neutral("stop"),
    "divergence.max_rollbacks": whole(1).neutral(3),
    "decay_bias_and_norm": FLAG.neutral(True),
    "compile": FLAG.neutral(False),
    "channels_last": FLAG.neutral(False),
    "profile": FLAG.neutral(False),
    "check": Rule(
        lambda v: isinstance(v, bool | int) and v >= 0, "true, false, or a number of devices to plan for"
    ).neutral(False),
    "float32_matmul_precision": one_of("highest", "high", "medium").neutral("highest"),
    "deterministic": FLAG.neutral(True),
    "device": one_of("auto", "cpu", "shared").neutral("auto"),
    "threads": whole(1).or_word("auto").neutral("auto"),
    "num_workers": whole(0).or_word("auto").neutral("auto"),
    "timeout": above(0).neutral(600),
    "log_every": whole(1).or_word("epoch").neutral(20),
    "eval_every": EVERY.neutral("epoch"),
    "metrics": Rule(lambda v: isinstance(v, list), "a list of torchmetrics names, such as [AUROC]").neutral([]),
    "checkpoint": section("checkpoint.every", "checkpoint.every=null saves at the end alone"),
    "checkpoint.every": EVERY.neutral("epoch"),
    "checkpoint.keep": whole(1).neutral(2),
    "checkpoint.best": TEXT.or_null().neutral("eval/loss"),
    "checkpoint.best_mode": one_of("min", "max").neutral("min"),
    "checkpoint.max_failures": whole(0).neutral(3),
    "batch": section("batch.global_size", "batch.global_size=64 is the number of samples per update"),
    "batch.global_size": whole(1),
    "batch.max_per_device": whole(1).or_word("auto").or_null().neutral(None),
    "batch.lr_scaling": one_of("none", "linear", "sqrt").neutral("none"),
    "batch.base_size": whole(1).neutral(64),
    "optimizer": section("", "optimizer=sgd picks one"),
    "optimizer.lr": above(0),
    "optimizer.momentum": between(0, 1),
    "optimizer.weight_decay": at_least(0),
    "optimizer.nesterov": FLAG,
    "optimizer.eps": at_least(0),
    "loss": section("", "loss=cross_entropy picks one"),
    "loss.label_smoothing": between(0, 1),
    "loss.gamma": at_least(0),
    "scheduler": section("", "scheduler=constant leaves the learning rate as it is"),
    "scheduler.interval": one_of("epoch", "step"),
    "strategy": section("", "strategy=ddp picks the usual one"),
    "strategy.name": one_of("ddp", "fsdp").neutral("ddp"),
    "strategy.find_unused_parameters": FLAG.neutral(False),
    "strategy.gradient_as_bucket_view": FLAG.neutral(True),
    "strategy.static_graph": FLAG.neutral(False),
    "strategy.compress": one_of("bf16", "fp16").or_null().neutral(None),
    "strategy.bucket_cap_mb": above(0),
    "strategy.broadcast_buffers": FLAG,
    "strategy.block": TEXT.or_null().neutral(None),
    "strategy.reshard_after_forward": FLAG.neutral(True),
    "strategy.accumulate_whole": FLAG.neutral(False),
    "strategy.meta_init": FLAG.neutral(True),
    "data": section("", "data=digits picks one"),
    "data.validation": between(0, 1),
    "data.test": between(0, 1),
    "data.split_seed": whole(0),
    "data.block": whole(1),
    "data.random_erasing": share().neutral(0.0),
    "data.augment": ANYTHING.neutral("none"),
    "data.validation_folders": ANYTHING.neutral(["validation", "val", "valid", "dev"]),
    "data.test_folders": ANYTHING.neutral(["test", "testing"]),
    "model": section("", "model=mlp picks one"),
    "model.hidden": list_of(whole(1), "whole numbers of at least 1"),
    "model.dropout": between(0, 1),
    "model.drop_rate": between(0, 1),
    "trackers": list_of(
        one_of("wandb", "tensorboard", "csv"), "wandb, tensorboard, csv, such as trackers=[wandb,csv]"
    ).neutral(["wandb"]),
    "wandb": section("wandb.mode", "wandb.mode=disabled switches it off"),
    "wandb.mode": one_of("auto", "online", "offline", "disabled").neutral("auto"),
    "wandb.project": text_without("/\\#?%:", 128).or_null().neutral(None),
    "wandb.entity": TEXT.or_null().neutral(None),
    "wandb.id": text_without(":;,#?/' ", 128).or_null().neutral(None),
    "wandb.name": TEXT.or_null().neutral(None),
    "wandb.group": TEXT.or_null().neutral(None),
    "wandb.tags": list_of(text_without("", 64), "texts of at most 64 characters").neutral([]),
    "wandb.artifacts": Rule(lambda v: v is False or v in ("best", "all"), "false, best or all").neutral(False),
    "wandb.watch": Rule(
        lambda v: v is False or v in WATCHED, f"false, {', '.join(WATCHED[:-1])} or {WATCHED[-1]}"
    ).neutral(False),
    "wandb.watch_every": whole(1).neutral(100),
    "wandb.tables": whole(0).neutral(0),
    "wandb.code": FLAG.neutral(False),
}

FIND_LR_SCHEMA: dict[str, Rule] = SCHEMA | {
    "find_lr": section("find_lr.max", "find_lr.max=1 is the largest rate"),
    "find_lr.min": above(0),
    "find_lr.max": above(0),
    "find_lr.steps": whole(10),
}

# What the commands have in common that take up a run.
SAVED_SCHEMA: dict[str, Rule] = {
    "run_dir": TEXT,
    "checkpoint": whole(0).or_word("auto", "best", "last"),
    "input": Rule(lambda v: TEXT.fits(v) or (list_of(TEXT, "").fits(v) and v), "a file or a folder").or_null(),
    "part": one_of("train", "validation", "test"),
    "data": Rule(lambda v: isinstance(v, dict), "settings of the data source, such as data.root=/other/place"),
    "batch_size": whole(1),
    "threads": SCHEMA["threads"],
    "num_workers": SCHEMA["num_workers"],
}
EVALUATE_SCHEMA: dict[str, Rule] = SAVED_SCHEMA | {
    "output": TEXT.or_null(),
    "metrics": SCHEMA["metrics"],
    "test_time_flip": FLAG.or_null(),
    "device": SCHEMA["device"],
    "timeout": SCHEMA["timeout"],
}
PREDICT_SCHEMA: dict[str, Rule] = SAVED_SCHEMA | {
    "part": SAVED_SCHEMA["part"].or_null(),
    "output": TEXT,
    "device": SCHEMA["device"],
}
FORMATS = ("safetensors", "torch_export", "onnx")
EXPORT_SCHEMA: dict[str, Rule] = SAVED_SCHEMA | {
    "format": Rule(
        lambda v: v in FORMATS or (list_of(one_of(*FORMATS), "").fits(v) and v),
        "formats, one or several of " + ", ".join(FORMATS),
    ),
    "output": TEXT,
    "tolerance": at_least(0),
}
RERUN_SCHEMA: dict[str, Rule] = {"run_dir": TEXT, "output": TEXT.or_null(), "dry_run": FLAG}

# What may differ when a run directory is started again, because the result does not depend on it.
FREE_ON_RESUME = (
    "epochs", "max_steps", "max_time", "batch.max_per_device", "wandb", "trackers", "log_every", "checkpoint",
    "device", "threads", "num_workers", "timeout", "cluster", "profile", "check", "data.cache", "log_grad_norm",
    "divergence", "activation_checkpointing", "strategy.name", "strategy.block", "strategy.find_unused_parameters",
    "strategy.gradient_as_bucket_view", "strategy.static_graph", "strategy.reshard_after_forward",
    "strategy.accumulate_whole", "strategy.meta_init",
)  # fmt: skip


def parse_duration(value: Any) -> float | None:
    """Seconds in `max_time`: a number of seconds, or a text such as "45s", "90m", "1.5h", "2d".

    Raises:
        ConfigError: It is neither.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([smhd]?)\s*", str(value)) if not isinstance(value, bool) else None
    if not match or float(match[1]) == 0:
        raise ConfigError(f'max_time={value}: use a number of seconds above 0, or a text such as "90m", "12h" or "2d".')
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


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
                raise ConfigError(f"{key} is missing from the config: {_needed(rule)}.")
        elif isinstance(rule, Section) and not rule.fits(value):
            means = rule.main in schema and value not in (None, False) and schema[rule.main].fits(value)
            meant = f"{rule.main}={_show(value)}"
            meant = f"{meant} sets one of them, " if means and not rule.words.startswith(meant) else ""
            raise ConfigError(f"{key}={_show(value)}: this is a group of settings; {meant}{rule.words}.")
        elif not rule.fits(value):
            raise ConfigError(f"{key}={_show(value)}: must be {rule.words}.{_type_hint(value, rule)}")
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
                raise ConfigError(f"{key}={_show(value)} with strategy=fsdp: {reason}")


def _needed(rule: Rule) -> str:
    return rule.words if isinstance(rule, Section) else f"set it to {rule.words}"


def _type_hint(value: Any, rule: Rule) -> str:
    """How a value is written that has the right letters and the wrong type."""
    if isinstance(value, bool) and rule.words != FLAG.words:
        return " Quote a text that YAML reads as something else: '\"no\"'."
    if isinstance(value, str) and rule.fits(_unquoted(value)):
        return (
            " This is a text: leave out its quotes, or where it comes from the environment, write "
            "'${oc.decode:${oc.env:NAME}}'."
        )
    return ""


def _unquoted(text: str) -> Any:
    """What YAML makes of a text that stands without quotes."""
    with suppress(ValueError):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    with suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


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
        given = _show(value) if isinstance(value, str | int | float | None) else None
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


NOT_SHARDED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("mixed_precision", ("fp16",), "its gradient scaler would look at one part alone. Use bf16, or strategy=ddp."),
    ("exact_across_devices", (True,), "it needs the whole gradient on each device. Use strategy=ddp."),
    ("compile", (True,), "the two are not supported together. Use compile=false, or strategy=ddp."),
    ("channels_last", (True,), "parts of parameters lie in torch's usual layout. Use channels_last=false."),
    ("wandb.watch", WATCHED, "histograms are made of whole tensors. Use wandb.watch=false, or strategy=ddp."),
    ("batch.max_per_device", ("auto",), "a device out of memory would leave the others in a gather. Give a number."),
    (
        "optimizer._target_",
        ("launcher.optimizers.Muon", "torch.optim.Muon", "torch.optim.Adafactor", "torch.optim.LBFGS"),
        "it needs whole matrices, and a device has a part of each. Use optimizer=adamw, or strategy=ddp.",
    ),
)
# Their settings are those of a class; the launcher knows some of them.
COMPONENTS = ("data", "model", "loss", "optimizer", "scheduler")
# What no launcher ever was without.
FOUNDING = (*COMPONENTS, "epochs", "seed", "batch.global_size")
OF_STRATEGY = {
    f"strategy.{key}": name
    for name, keys in (
        ("ddp", ("find_unused_parameters", "gradient_as_bucket_view", "static_graph", "compress")),
        ("fsdp", ("block", "reshard_after_forward", "accumulate_whole", "meta_init")),
    )
    for key in keys
}
FP16_ON_CPU = (
    "mixed_precision=fp16: a CPU has no fp16 training (Accelerate would run fp32 in silence). "
    "Use mixed_precision=bf16 or no, or a GPU."
)


def _show(value: Any) -> str:
    if value is UNSTATED:
        return "absent"
    if isinstance(value, str):
        return value if isinstance(_unquoted(value), str) else f'"{value}"'
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- Composition ---------------------------------------------------------------------------------------------------


RUN_DIR = "${hydra:runtime.output_dir}"  # stands in settings for the run directory, which rank 0 names when it makes it


class SweepAsked(ConfigError):
    """The config asks for a sweep (hydra.mode=MULTIRUN) where one run was to be composed."""


@dataclass
class Composed:
    """A composed, resolved and checked config.

    Attributes:
        settings: Everything but Hydra's own node; plain values, struct mode on. Where they refer to the run directory
            they hold RUN_DIR, until `at` puts the path in its place.
        hydra: Hydra's node, with the name of the run directory resolved.
        overrides: The command line's.
        told: Settings that take their value from the clock or from Hydra, by their dotted names.
        local: Whether another process may have composed others: from its own clock or environment.
        adopted: Those of the overrides that `accelerate launch` asked for.
    """

    settings: DictConfig
    hydra: DictConfig
    overrides: list[str]
    told: frozenset[str] = frozenset()
    local: bool = False
    adopted: list[str] = field(default_factory=list)

    @property
    def chose_directory(self) -> bool:
        """True where the person named the run directory, which means: start it or resume it."""
        return any(override.lstrip("+").startswith("hydra.run.dir=") for override in self.overrides)

    @property
    def names_directory(self) -> bool:
        """Whether a setting refers to the run directory."""
        return any(RUN_DIR in text for text in texts(self.plain()))

    def plain(self) -> dict[str, Any]:
        """The settings as plain dicts and lists."""
        plain: Any = OmegaConf.to_container(self.settings)
        return plain

    def used(self) -> DictConfig:
        """The settings with the path of the run directory where they refer to it."""
        return self.having(at(self.plain(), Path(str(self.hydra.run.dir)).resolve())).settings

    def told_by(self, settings: Mapping[str, Any], directory: str) -> "Composed":
        """The same with settings and directory of rank 0; where a setting refers to that, it is as good as named."""
        hydra = copy.deepcopy(self.hydra)
        OmegaConf.update(hydra, "run.dir", directory)
        named = [directory_override(directory)] if self.names_directory and not self.chose_directory else []
        return replace(self.having(settings), hydra=hydra, overrides=[*self.overrides, *named])

    def having(self, settings: Mapping[str, Any]) -> "Composed":
        """The same with other settings."""
        made = OmegaConf.create(dict(settings))
        OmegaConf.set_struct(made, True)
        return replace(self, settings=made)

    def as_begun(self, before: Mapping[str, Any]) -> "Composed":
        """The same, with what the clock and Hydra said when the run began.

        Args:
            before: The settings that it began with.
        """
        then = leaves(before)
        return self.having(with_leaves(self.plain(), {key: then[key] for key in self.told & then.keys()}))


def hydra_node(plain: Any) -> DictConfig:
    """Hydra's node with its types: as it was written, perhaps by another release of Hydra, unless it has them."""
    if isinstance(plain, DictConfig) and OmegaConf.get_type(plain) is HydraConf:
        return plain
    base = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(base, False)
    node = OmegaConf.merge(base, plain)
    assert isinstance(node, DictConfig)
    return node


def publish(hydra: DictConfig, directory: Path | str | None) -> None:
    """Have Hydra's own HydraConfig, which a person's code may ask, say what this run was composed with.

    Args:
        hydra: Hydra's node.
        directory: Of the run; None where it is not known yet.
    """
    whole = OmegaConf.create({"hydra": hydra_node(hydra)})
    with read_write(whole):
        whole.hydra.runtime.output_dir = "???" if directory is None else str(Path(directory).resolve())
    HydraConfig.instance().set_config(whole)


def at(settings: Any, path: Path | str) -> Any:
    """Plain settings with the path of the run directory where they refer to it."""
    return map_texts(settings, lambda text: text.replace(RUN_DIR, str(path)))


def map_texts(node: Any, change: Callable[[str], str]) -> Any:
    """Plain settings with each text changed."""
    if isinstance(node, dict):
        return {key: map_texts(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [map_texts(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def texts(node: Any) -> Iterator[str]:
    """Every text in plain settings."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        if isinstance(value, str):
            yield value
        else:
            yield from texts(value)


def with_leaves(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings, of which some have other values, by their dotted names."""
    changed: dict[str, Any] = copy.deepcopy(dict(settings))
    for key, value in changes.items():
        node = changed
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return changed


# Settings and options whose values are places in a file system.
NAMES_A_PLACE = re.compile(
    r"(^|\.)(run_dir|input|output|init_from|dir|subdir|root|path|checkpoint|tokenizer|cache)$|^-+c(onfig-)?(d|p|n)"
)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read a command line by Hydra's own parser; options may stand between the overrides.

    Raises:
        ConfigError: It has an option that is not there, or one that does something else here.
    """
    for word in argv:
        key, equals, value = word.partition("=")
        for part in re.split(r"[\[\],]", value if equals else word):
            if not equals or NAMES_A_PLACE.search(key):
                check_length(Path(part), key if equals else "")
    parser = get_args_parser()
    parser.formatter_class = argparse.RawTextHelpFormatter  # which does not break --version into lines
    parser.allow_abbrev = False  # --experiment=x is no short form of --experimental-rerun

    def refuse(message: str) -> None:
        raise ConfigError(messages.unread_words(message))

    parser.error = refuse  # type: ignore[method-assign, assignment]
    for action in parser._actions:
        if "--version" in action.option_strings:
            action.version = _versions()  # type: ignore[attr-defined]
    arguments = parser.parse_intermixed_args(argv)
    for option, given in (("--resolve", arguments.resolve), ("--package", arguments.package)):
        if given and not (arguments.cfg or (arguments.help and option == "--resolve")):
            raise ConfigError(f"{option}: says how --cfg shows a config. Add --cfg job.")
    if arguments.experimental_rerun is not None:
        place = Path(arguments.experimental_rerun).parent
        run = place.parent if place.name == ".hydra" else Path("RUN_DIR")
        raise ConfigError(
            f"--experimental-rerun: a run is repeated from its directory, python launcher/rerun.py {run}, "
            "or gone on with by hydra.run.dir."
        )
    return arguments


def _versions() -> str:
    from importlib import metadata

    import launcher

    lines = [f"launcher {launcher.__version__}"]
    for package in ("hydra-core", "omegaconf", "torch", "accelerate", "wandb"):
        with suppress(metadata.PackageNotFoundError):
            lines.append(f"{package} {metadata.version(package)}")
    return ", ".join(lines)


@contextmanager
def opened(arguments: argparse.Namespace, config_name: str) -> Iterator[tuple[Hydra, str]]:
    """Hydra over conf/ and the person's own --config-dir, and the name of the primary config.

    Raises:
        ConfigError: The directory does not exist.
    """
    conf = arguments.config_path or str(CONF)
    search_path = create_config_search_path(f"file://{Path(conf).resolve()}")
    if arguments.config_dir is not None:
        own = Path(arguments.config_dir).resolve()
        if not own.is_dir():
            raise ConfigError(f"--config-dir={arguments.config_dir}: there is no such directory.")
        search_path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2(task_name=config_name, config_search_path=search_path)
    moment = datetime.now()  # one for all that a command composes: each run of a sweep, and the sweep itself
    OmegaConf.register_new_resolver("now", lambda pattern: _asked("now", moment.strftime(pattern)), replace=True)
    OmegaConf.register_new_resolver("hydra", lambda key: _asked("hydra", _of_hydra(key)), replace=True)
    try:
        yield hydra, arguments.config_name or config_name
    finally:
        GlobalHydra.instance().clear()


_told: set[str] = set()  # the resolvers that were asked, of `now` and `hydra`


def _asked(resolver: str, value: Any) -> Any:
    _told.add(resolver)
    return value


def _of_hydra(key: str) -> Any:
    """What `${hydra:key}` is: Hydra's own answer, but for a name that it does not have."""
    if key == "runtime.output_dir":
        return RUN_DIR
    node: Any = HydraConfig.get()
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node._content:  # type: ignore[operator]
            raise ConfigError(f"Hydra has no {key}; --cfg hydra shows what it has.")
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return node


def compose_run(hydra: Hydra, config_name: str, arguments: argparse.Namespace) -> Composed | None:
    """Compose the one run that a command line asks for; None where it, or the config, asks for a sweep.

    Raises:
        ConfigError: As for `compose`, or what a sweep alone has use for is said of a run.
    """
    if arguments.multirun:
        return None
    try:
        composed = compose(hydra, config_name, arguments.overrides)
    except SweepAsked:
        return None
    for word in arguments.overrides:
        if re.match(r"\+*(hydra[./](launcher|sweeper)|cluster)\b", word):
            raise ConfigError(f"{word}: is about a sweep, and this is one run. Add -m, or leave it out.")
    return composed


def compose(
    hydra: Hydra,
    config_name: str,
    overrides: list[str],
    schema: Mapping[str, Rule] = SCHEMA,
    trial: Mapping[str, Any] | None = None,
) -> Composed:
    """Compose one run's config, resolve it and check it against its schema.

    Args:
        hydra: Over conf/.
        config_name: The primary config.
        overrides: The command line's.
        schema: Of its settings.
        trial: Of a sweep's trial, what Hydra says of it in hydra.job: num, id, override_dirname.

    Raises:
        ConfigError: Hydra cannot compose it, or a setting is wrong.
        SweepAsked: It is a sweep, and `trial` is None.
    """
    before = HydraConfig.instance().cfg
    try:
        try:
            config = hydra.compose_config(config_name, overrides, RunMode.RUN, from_shell=False)
        except KeyError as error:
            raise ConfigError(f"hydra.job.env_copy: the environment has no variable {error}.") from error
        if trial is None and config.hydra.mode == RunMode.MULTIRUN:
            raise SweepAsked("hydra.mode=MULTIRUN: this is one run. Name one value for each setting.")
        config.hydra.mode = RunMode.RUN if trial is None else RunMode.MULTIRUN
        config.hydra.job.update(trial or {})
        HydraConfig.instance().set_config(config)
        plain, told, local = _resolved(hydra, config, overrides, schema)
        own = config.hydra
        with read_write(own):
            _told.clear()
            key = "hydra.run.dir" if trial is None else "hydra.sweep.subdir"
            directory = str(OmegaConf.select(config, key))
            OmegaConf.update(config, key, directory)
            own.job.env_set = OmegaConf.to_container(own.job.env_set, resolve=True)
            local = local or bool(_told)
            own._set_parent(None)
        OmegaConf.set_readonly(own, False)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        several = re.search("Ambiguous value|requires --multirun", str(error)) and trial is None
        if several and hydra.get_mode(config_name, overrides) == RunMode.MULTIRUN:
            raise SweepAsked("hydra.mode=MULTIRUN: this is one run. Name one value for each setting.") from error
        raise ConfigError(messages.explain(hydra, config_name, overrides, error)) from error
    finally:
        HydraConfig.instance().cfg = before
    if RUN_DIR in directory:
        raise ConfigError(f"{key}={directory}: refers to itself.")
    if not directory:
        raise ConfigError(f"{key}: names no directory; {key}=. is the one that you are in.")
    for name, value in leaves(plain).items():
        if any("${" in text.replace(RUN_DIR, "") for text in texts([value])):
            raise ConfigError(f"{name}={_show(value)}: a text here cannot hold ${{, which begins a reference.")
    check_length(Path(directory), key)
    if own.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: a run stays in the directory that it is started in. A setting that is "
            f"'{RUN_DIR}' is the run's own."
        )
    if own.output_subdir != ".hydra":
        raise ConfigError(f"hydra.output_subdir={_show(own.output_subdir)}: must be .hydra, by which a run is known.")
    if own.callbacks:
        raise ConfigError("hydra.callbacks: a run calls none. Put what they do into a class of your own.")
    if plain.get("mixed_precision") is False:  # an unquoted `no` in somebody's YAML
        plain["mixed_precision"] = "no"
    for source in own.runtime.config_sources:
        if source.schema == "file" and Path(source.path).name == ".hydra":  # a run directory's
            from launcher import trust

            trust.check_targets(plain, Path(source.path).parent)
    plain = filled(plain, schema)
    check_settings(plain, schema)
    environment: Mapping[str, str] = os.environ
    if isinstance(devices := own.launcher.get("devices_per_run"), int) and trial is not None:
        environment = {**environment, "WORLD_SIZE": str(devices)}  # of the trial, which shares its batch among so many
    if "mixed_precision" in schema and (more := adopt(plain, overrides, environment, parent_command())):
        return replace(compose(hydra, config_name, [*overrides, *more], schema, trial), adopted=more)
    made = Composed(OmegaConf.create(), own, list(overrides), told, local)
    return made.having(plain)


def _resolved(
    hydra: Hydra, config: DictConfig, overrides: list[str], schema: Mapping[str, Rule]
) -> tuple[dict[str, Any], frozenset[str], bool]:
    """The settings of a config with their `${...}` resolved, and Composed's `told` and `local`."""
    for word in overrides:
        key = word[1:].partition("=")[0] if word.startswith("~") else ""
        if key in schema and (key in COMPONENTS or key.partition(".")[0] not in COMPONENTS):
            raise ConfigError(f"{word}: a run cannot do without {key}; {_needed(schema[key])}.")
    _drop_inherited(hydra, config, config.hydra, overrides)
    raw: Any = OmegaConf.to_container(config)
    text = "\n".join(texts(raw))
    del raw["hydra"]
    raw.pop("cluster", None)  # where a run is submitted to is no setting of the run
    check_known(raw, config.hydra, schema, text)
    # `${hydra.job.num}` refers to a node that is not there any more; `${hydra:job.num}` is the same.
    settings = OmegaConf.create(map_texts(raw, lambda text: re.sub(r"\$\{hydra\.", "${hydra:", text)))
    _told.clear()
    plain: Any = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    told = frozenset(_told_by(settings)) if _told else frozenset()
    return {str(key): value for key, value in plain.items()}, told, bool(told) or "oc.env" in text


def _told_by(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that ask the clock or Hydra, by themselves or by what they refer to."""
    for key in map(str, node):
        _told.clear()
        value = node[key]
        if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(node, key):
            yield from _told_by(value, f"{prefix}{key}.")
            continue
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        if _told:
            yield from leaves({key: value}, prefix)


def compose_tool(config_name: str, argv: list[str], schema: Mapping[str, Rule]) -> Composed | None:
    """Compose the config of a command that takes up a run.

    A word that is no override names the run, and settings of the run's data source (`data.root=...`) are added.

    Args:
        config_name: Its file in conf/.
        argv: The words of the command line.
        schema: Of its settings.

    Returns:
        None where the command line only asks to be shown something, which it was.
    """
    arguments = parse_arguments(argv)
    if show(arguments, config_name):
        return None
    if arguments.multirun:
        raise ConfigError(f"-m: launcher/{config_name}.py takes up one run. Call it for each.")
    overrides = []
    for word in arguments.overrides:
        key, _, value = word.partition("=")
        if Path(word).is_dir() or ("=" not in word and not word.startswith("~")):
            word = override("run_dir", word)
        elif key in ("run_dir", "input", "output") and ("=" in value or "," in value) and value[0] not in "'\"[":
            word = override(key, value)  # a point of a grid is called optimizer=adam,seed=1
        overrides.append(f"++{word}" if word.startswith("data.") else word)
    with opened(arguments, config_name) as (hydra, name):
        return compose(hydra, name, overrides, schema)


def show(arguments: argparse.Namespace, config_name: str) -> bool:
    """Answer --help, --hydra-help, --cfg, --info and --shell-completion as Hydra does.

    Returns:
        False where the command line asks for none of them.
    """
    if not (arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion):
        return False
    if arguments.shell_completion:  # Hydra reads the shell's request from its own command line
        hydra_main(version_base="1.3", config_path=str(CONF), config_name=config_name)(lambda config: None)()
        return True
    with opened(arguments, config_name) as (hydra, name):
        try:
            if arguments.help:
                hydra.app_help(name, get_args_parser(), arguments)
            elif arguments.hydra_help:
                hydra.hydra_help(name, get_args_parser(), arguments)
            elif arguments.cfg:
                hydra.show_cfg(name, arguments.overrides, arguments.cfg, arguments.package, arguments.resolve)
            else:
                hydra.show_info(arguments.info, name, arguments.overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(messages.explain(hydra, name, arguments.overrides, error)) from error
    return True


class Task:
    """What Hydra's launchers get for a task function: not the training itself, but how to compose a point of the grid.

    Attributes:
        failed: Points that a launcher saw fail.
        stop: Its request to stop, which lasts over all that a sweeper hands it.
        swept: Settings that have several values in all of the grid, of which a launcher may see one at a time.
    """

    def __init__(self, hydra: Hydra, config_name: str) -> None:
        self._hydra, self._config_name, self._said = hydra, config_name, False
        self.failed: list[str] = []
        self.stop: Any = None
        self.swept: frozenset[str] = frozenset()

    def compose(self, overrides: list[str], job: Mapping[str, Any]) -> Composed:
        """Compose and check a point of the grid.

        Args:
            overrides: The command line's.
            job: What Hydra says of it in hydra.job.
        """
        point = compose(self._hydra, self._config_name, overrides, trial=job)
        if point.adopted and not self._said:
            self._said = True
            print(f"adopted    {' '.join(point.adopted)}, as accelerate launch was asked to", flush=True)
        if point.settings.get("check"):
            raise ConfigError(f"check={_show(point.settings.check)}: checks one run; leave out -m.")
        return point


def sweep(hydra: Hydra, config_name: str, overrides: list[str]) -> int:
    """Run a grid (-m): Hydra's sweeper makes the points, its launcher runs each in processes of its own.

    Returns:
        0 where every point went well, else 1.

    Raises:
        ConfigError: A setting is wrong, or the launcher is one that would train nothing.
    """
    task: Any = Task(hydra, config_name)
    overrides = [*overrides, "hydra.mode=MULTIRUN"]
    try:
        master = hydra.compose_config(config_name, overrides, RunMode.MULTIRUN, from_shell=False)
        target, option = str(master.hydra.launcher._target_), master.hydra.runtime.choices.get("hydra/launcher")
        if not _trains(target):
            raise ConfigError(
                f"hydra/launcher={option} ({target}): would train each trial in its own process, without devices "
                "and without going on. Use hydra/launcher=local (hydra.launcher.max_parallel=1 for one trial at a "
                "time), or slurm"
                + ("." if f"hydra/launcher={option}" in overrides else
                   f"; the defaults of {config_name!r} do with `- override hydra/launcher: local`.")
            )  # fmt: skip
        hydra.multirun(config_name=config_name, overrides=overrides, task_function=task, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(messages.explain(hydra, config_name, overrides, error)) from error
    except RuntimeError as error:
        if "Invalid plugin" in str(error):
            raise ConfigError(f"hydra/sweeper: {error}.") from error
        if not task.failed:  # else a sweeper gave up because of a point that failed, and the launcher said so
            raise
    return int(bool(task.failed))


def _trains(target: str) -> bool:
    """Whether a launcher is one of ours, which take what `Task` composes."""
    from hydra.utils import get_object

    from hydra_plugins.local_launcher import LocalLauncher

    try:
        found = get_object(target)
    except Exception:  # whatever the import of a person's own raises
        return False
    return isinstance(found, type) and issubclass(found, LocalLauncher)


def directory_override(path: Path | str) -> str:
    """The override that names a run directory."""
    return override("hydra.run.dir", str(path))


def override(key: str, text: str) -> str:
    """The override that sets a text, quoted where Hydra's grammar needs it."""
    if not re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        # Inside quotes a backslash is one of its own, but for those before a quote.
        text = "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"
    return f"{key}={text}"


def _drop_inherited(hydra: Hydra, config: DictConfig, own: DictConfig, overrides: list[str]) -> None:
    """Where a person's own `_target_` replaced an option's, leave out that option's keys that the class does not name.

    `model._target_=my.Net` stands on top of some option (mlp by default), whose `hidden` means nothing to my.Net, not
    even where it would take anything (`**kwargs`). A key that the person set is kept, on the command line or in a file
    of their own: the class will refuse it by name.
    """
    chosen = {key_of(word) for word in overrides}
    for group, option in own.runtime.choices.items():
        node = config.get(group) if "/" not in str(group) and "@" not in str(group) else None
        if not isinstance(node, DictConfig) or not option or "_target_" not in node:
            continue
        file = _file(hydra, f"{group}/{option}")
        if file is None or file.get("_target_") == node.get("_target_"):
            continue
        from launcher.components import locate, named

        names = named(locate(str(node["_target_"]), str(group)))
        names |= {"interval", "warmup", "metric", "mode"} if group == "scheduler" else set()
        names |= _set_by_files(hydra, own, overrides, str(group), f"{group}/{option}")
        with read_write(node), open_dict(node):
            for key in list(node):
                inherited = key in file and f"{group}.{key}" not in chosen and not str(key).startswith("_")
                if inherited and key not in names:
                    del node[key]


def _set_by_files(hydra: Hydra, own: DictConfig, overrides: list[str], group: str, option: str) -> set[str]:
    """The settings of a group that files of the person's own set, beside that of the option."""
    found: set[str] = set()
    made_of = hydra.config_loader.compute_defaults_list(own.job.config_name, overrides, RunMode.RUN).defaults
    for default in made_of:
        if default.config_path in (None, option) or str(default.config_path).startswith("hydra/"):
            continue
        loaded = ConfigRepository(hydra.config_loader.get_search_path()).load_config(str(default.config_path))
        if loaded is None or loaded.path == f"file://{CONF}" or not isinstance(loaded.config, DictConfig):
            continue
        package = default.package or ""
        node: Any = loaded.config if package == group else loaded.config.get(group) if package == "" else None
        found |= {str(key) for key in node} if isinstance(node, DictConfig) else set()
    return found


def _file(hydra: Hydra, name: str) -> DictConfig | None:
    """A file of the config as it is written, before overrides."""
    result = ConfigRepository(hydra.config_loader.get_search_path()).load_config(name)
    return result.config if result is not None and isinstance(result.config, DictConfig) else None


def key_of(override: str) -> str:
    """The setting that an override sets."""
    return override.partition("=")[0].lstrip("+~")


# --- Resuming ------------------------------------------------------------------------------------------------------


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps a run directory from being resumed with another config.

    Args:
        old: The settings that the directory was made with.
        new: The settings it is started with now.

    Returns:
        Lines such as `optimizer.lr: 0.1 -> 0.2`; empty where every difference leaves the result as it is.
    """
    before, after = leaves(filled(old)), leaves(filled(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME):
            continue
        was, now = (side[key] if key in side else _unsaid(side, key) for side in (before, after))
        if was != now:
            lines.append(f"{key}: {_show(was)} -> {_show(now)}")
    return lines


def _unsaid(given: Mapping[str, Any], key: str) -> Any:
    """What a setting is that one side does not give: what the schema states, else the default of its class."""
    group, _, name = key.partition(".")
    of_class = f"{group}._target_" in given
    if (of_class or group not in COMPONENTS) and key in SCHEMA and SCHEMA[key].absent is not UNSTATED:
        return SCHEMA[key].absent
    if group not in COMPONENTS or not of_class or "." in name:
        return UNSTATED
    from launcher.components import default_of, locate

    try:
        return default_of(locate(str(given[f"{group}._target_"]), group), name, UNSTATED)
    except ConfigError:
        return UNSTATED


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def make_directory(directory: Path, setting: str, exist_ok: bool = True) -> None:
    """Make a directory, where `check_writable` could not tell that the system would not have it.

    Raises:
        ConfigError: It cannot be made.
        FileExistsError: It is there, and must not.
    """
    try:
        directory.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(f"{setting}={directory}: cannot be made: {error.strerror}. Choose another.") from error


LONGEST_NAME, LONGEST_PATH = 255, 4096 - 256  # bytes; with room for the files in a directory


def check_length(path: Path, setting: str) -> None:
    """Check that a file system takes a path by its length, with some room for the names of files below it.

    Raises:
        ConfigError: It or one of its parts is too long.
    """
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    whole_length = len(os.fsencode(path.absolute()))
    if longest > LONGEST_NAME or whole_length > LONGEST_PATH:
        what = f"a name of {longest} bytes, and file systems take {LONGEST_NAME}"
        if longest <= LONGEST_NAME:
            what = f"{whole_length:,} bytes, and file systems take {LONGEST_PATH:,} with the files in it"
        shown = f"{setting}={messages.short(str(path))}" if setting else messages.short(str(path))
        raise ConfigError(f"{shown}: {what}. Choose a shorter one.")


def check_writable(directory: Path, setting: str = "hydra.run.dir") -> None:
    """Check that a directory could be made, without making it.

    Args:
        directory: The one.
        setting: That names it, for messages.

    Raises:
        ConfigError: A file stands in the way, or the permission is missing.
    """
    check_length(directory, setting)
    for place in (directory, *directory.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{setting}={directory}: {place} is a file. Choose another directory.")
            if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
                raise ConfigError(f"{setting}={directory}: no permission to write in {place}. Choose another.")
            return


def check_file(file: Path, setting: str) -> None:
    """Check that a file could be written.

    Raises:
        ConfigError: It is a directory, its directory is not there, or the permission is missing.
    """
    parent = file.absolute().parent
    if file.is_dir() or not parent.is_dir():
        raise ConfigError(f"{setting}={file}: name a file in a directory that is there.")
    check_writable(parent, setting)
