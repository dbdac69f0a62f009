"""Composition of conf/, the typed schema of its settings, and every check that needs no device.

Nothing here imports torch, so that a wrong setting is answered in well under a second.
"""

import argparse
import difflib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra import main as hydra_main
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from launcher.accelerate_flags import adopt, parent_command
from launcher.direction import direction
from launcher.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# --- The schema: what a value may be -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a setting may be: a predicate, and the words for it."""

    fits: Callable[[Any], bool]
    words: str

    def or_null(self) -> "Rule":
        """The same, and null as well."""
        return Rule(lambda value: value is None or self.fits(value), f"{self.words}, or null")

    def or_word(self, *words: str) -> "Rule":
        """The same, and some words as well."""
        return Rule(lambda value: value in words or self.fits(value), f"{self.words}, or {' or '.join(words)}")


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


def text_without(characters: str, longest: int) -> Rule:
    """A text that W&B takes as a name."""
    words = f"a text of at most {longest} characters, without any of {' '.join(characters)}"
    return Rule(lambda v: isinstance(v, str) and 0 < len(v) <= longest and not set(v) & set(characters), words)


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a text")
WATCHED = ("gradients", "parameters", "all")
EVERY = whole(1).or_word("epoch").or_null()

SCHEMA: dict[str, Rule] = {
    "epochs": whole(1),
    "max_steps": whole(1).or_null(),
    "seed": whole(0),
    "mixed_precision": one_of("no", "bf16", "fp16"),
    "clip_grad_norm": above(0).or_null(),
    "clip_grad_value": above(0).or_null(),
    "log_grad_norm": FLAG,
    "ema_decay": between(0, 1).or_null(),
    "init_from": TEXT.or_null(),
    "freeze": list_of(TEXT, "patterns of parameter names, such as [layers.0.*]"),
    "layer_decay": Rule(lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and at most 1").or_null(),
    "activation_checkpointing": Rule(
        lambda v: v is False or (isinstance(v, list) and v != [] and all(TEXT.fits(name) for name in v)),
        "false, or a list of patterns of module names, such as [layers.*]",
    ),
    "sampling": one_of("shuffle", "balanced"),
    "early_stopping.metric": TEXT.or_null(),
    "early_stopping.mode": one_of("min", "max"),
    "early_stopping.patience": whole(1),
    "early_stopping.min_delta": at_least(0),
    "mixup.alpha": at_least(0),
    "mixup.cutmix_alpha": at_least(0),
    "mixup.prob": share(),
    "mixup.switch_prob": share(),
    "test_time_flip": FLAG,
    "exact_across_devices": FLAG,
    "canonical_shards": whole(1),
    "divergence.action": one_of("stop", "rollback"),
    "divergence.max_rollbacks": whole(1),
    "decay_bias_and_norm": FLAG,
    "compile": FLAG,
    "channels_last": FLAG,
    "profile": FLAG,
    "check": Rule(lambda v: isinstance(v, bool | int) and v >= 0, "true, false, or a number of devices to plan for"),
    "float32_matmul_precision": one_of("highest", "high", "medium"),
    "deterministic": FLAG,
    "device": one_of("auto", "cpu"),
    "threads": whole(1).or_word("auto"),
    "num_workers": whole(0),
    "timeout": above(0),
    "log_every": whole(1).or_word("epoch"),
    "eval_every": EVERY,
    "metrics": Rule(lambda v: isinstance(v, list), "a list of torchmetrics names, such as [AUROC]"),
    "checkpoint.every": EVERY,
    "checkpoint.keep": whole(1),
    "checkpoint.best": TEXT.or_null(),
    "checkpoint.best_mode": one_of("min", "max"),
    "checkpoint.max_failures": whole(0),
    "batch.global_size": whole(1),
    "batch.max_per_device": whole(1).or_word("auto").or_null(),
    "batch.lr_scaling": one_of("none", "linear", "sqrt"),
    "batch.base_size": whole(1),
    "optimizer.lr": above(0),
    "optimizer.momentum": between(0, 1),
    "optimizer.weight_decay": at_least(0),
    "optimizer.nesterov": FLAG,
    "optimizer.eps": at_least(0),
    "loss.label_smoothing": between(0, 1),
    "loss.gamma": at_least(0),
    "scheduler.interval": one_of("epoch", "step"),
    "strategy.name": one_of("ddp", "fsdp"),
    "strategy.find_unused_parameters": FLAG,
    "strategy.gradient_as_bucket_view": FLAG,
    "strategy.static_graph": FLAG,
    "strategy.compress": one_of("bf16", "fp16").or_null(),
    "strategy.block": TEXT.or_null(),
    "strategy.reshard_after_forward": FLAG,
    "strategy.accumulate_whole": FLAG,
    "strategy.meta_init": FLAG,
    "data.validation": between(0, 1),
    "data.test": between(0, 1),
    "data.split_seed": whole(0),
    "data.block": whole(1),
    "data.random_erasing": share(),
    "model.hidden": list_of(whole(1), "whole numbers of at least 1"),
    "model.dropout": between(0, 1),
    "model.drop_rate": between(0, 1),
    "trackers": list_of(one_of("wandb", "tensorboard", "csv"), "wandb, tensorboard, csv, such as trackers=[wandb,csv]"),
    "wandb.mode": one_of("auto", "online", "offline", "disabled"),
    "wandb.project": text_without("/\\#?%:", 128).or_null(),
    "wandb.entity": TEXT.or_null(),
    "wandb.id": text_without(":;,#?/' ", 128).or_null(),
    "wandb.name": TEXT.or_null(),
    "wandb.group": TEXT.or_null(),
    "wandb.tags": list_of(text_without("", 64), "texts of at most 64 characters"),
    "wandb.artifacts": Rule(lambda v: v is False or v in ("best", "all"), "false, best or all"),
    "wandb.watch": Rule(lambda v: v is False or v in WATCHED, f"false, {', '.join(WATCHED[:-1])} or {WATCHED[-1]}"),
    "wandb.watch_every": whole(1),
    "wandb.tables": whole(0),
    "wandb.code": FLAG,
}

FIND_LR_SCHEMA: dict[str, Rule] = SCHEMA | {
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
            if "." not in key:
                raise ConfigError(f"{key} is missing from the config: set it to {rule.words}.")
        elif not rule.fits(value):
            hint = " Quote a text that YAML reads as something else: '\"no\"'." if isinstance(value, bool) else ""
            raise ConfigError(f"{key}={_show(value)}: must be {rule.words}.{hint if rule is not FLAG else ''}")
    parse_duration(settings.get("max_time"))
    if "wandb.project" in schema and settings["wandb"]["mode"] != "disabled":
        for variable, key in (("WANDB_PROJECT", "wandb.project"), ("WANDB_RUN_ID", "wandb.id")):
            if (value := os.environ.get(variable)) and not schema[key].fits(value):
                raise ConfigError(f"{variable}={value} in the environment: must be {schema[key].words}.")
    if "epochs" in schema:
        _check_together(settings)
    if settings.get("device") == "cpu" and settings.get("mixed_precision") == "fp16":
        raise ConfigError(FP16_ON_CPU)
    if "tensorboard" in settings.get("trackers", ()) and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("trackers: tensorboard is not installed: pip install 'launcher[tensorboard]'.")
    if (settings.get("strategy") or {}).get("name") == "fsdp":
        for key, unfit, reason in NOT_SHARDED:
            value = settings
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value in unfit:
                raise ConfigError(f"{key}={_show(value)} with strategy=fsdp: {reason}")


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
    ("batch.max_per_device", ("auto",), "trying needs the whole model on each device. Give a number."),
    (
        "optimizer._target_",
        ("launcher.optimizers.Muon", "torch.optim.Muon", "torch.optim.Adafactor", "torch.optim.LBFGS"),
        "it needs whole matrices, and a device has a part of each. Use optimizer=adamw, or strategy=ddp.",
    ),
)
FP16_ON_CPU = (
    "mixed_precision=fp16: a CPU has no fp16 training (Accelerate would run fp32 in silence). "
    "Use mixed_precision=bf16 or no, or a GPU."
)


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- Composition ---------------------------------------------------------------------------------------------------


@dataclass
class Composed:
    """A composed, resolved and checked config.

    Attributes:
        settings: Everything but Hydra's own node; plain values, struct mode on.
        hydra: Hydra's node.
        overrides: The command line's overrides.
        adopted: Those of them that `accelerate launch` asked for.
    """

    settings: DictConfig
    hydra: DictConfig
    overrides: list[str]
    adopted: list[str] = field(default_factory=list)

    @property
    def chose_directory(self) -> bool:
        """True where the person named the run directory, which means: start it or resume it."""
        return any(override.lstrip("+").startswith("hydra.run.dir=") for override in self.overrides)

    def plain(self) -> dict[str, Any]:
        """The settings as plain dicts and lists."""
        plain: Any = OmegaConf.to_container(self.settings)
        return plain


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read a command line by Hydra's own parser; options may stand between the overrides."""
    return get_args_parser().parse_intermixed_args(argv)


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
    try:
        yield hydra, arguments.config_name or config_name
    finally:
        GlobalHydra.instance().clear()


def compose(hydra: Hydra, config_name: str, overrides: list[str], schema: Mapping[str, Rule] = SCHEMA) -> Composed:
    """Compose one run's config, resolve it and check it against its schema.

    Raises:
        ConfigError: Hydra cannot compose it, or a setting is wrong.
    """
    try:
        config = hydra.compose_config(config_name, overrides, RunMode.RUN, from_shell=False)
        HydraConfig.instance().set_config(config)
        with read_write(config), open_dict(config):
            own = config.pop("hydra")
            config.pop("cluster", None)  # where a run is submitted to is no setting of the run
        _drop_inherited(hydra, config, own, overrides)
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_explain(hydra, config_name, overrides, error)) from error
    assert isinstance(settings, dict)
    if settings.get("mixed_precision") is False:  # an unquoted `no` in somebody's YAML
        settings["mixed_precision"] = "no"
    plain = {str(key): value for key, value in settings.items()}
    check_settings(plain, schema)
    if "mixed_precision" in schema and (more := adopt(plain, overrides, os.environ, parent_command())):
        return replace(compose(hydra, config_name, [*overrides, *more], schema), adopted=more)
    resolved = OmegaConf.create(settings)
    OmegaConf.set_struct(resolved, True)
    return Composed(resolved, own, list(overrides))


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


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed config without Hydra's own node."""
    copy = config.copy()
    with read_write(copy), open_dict(copy):
        copy.pop("hydra")
    return copy


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
            raise ConfigError(_explain(hydra, name, arguments.overrides, error)) from error
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

    def __call__(self, config: DictConfig) -> None:
        """What a launcher does that trains in the calling process.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("hydra/launcher: this one trains in the calling process. Use hydra/launcher=local.")

    def compose(self, overrides: list[str]) -> Composed:
        """Compose and check a point of the grid."""
        point = compose(self._hydra, self._config_name, overrides)
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
    """
    task = Task(hydra, config_name)
    try:
        hydra.multirun(config_name=config_name, overrides=overrides, task_function=task, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(hydra, config_name, overrides, error)) from error
    except RuntimeError:
        if not task.failed:  # else a sweeper gave up because of a point that failed, and the launcher said so
            raise
    return int(bool(task.failed))


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
    """Where a person's own `_target_` replaced an option's, leave out that option's keys that the class does not take.

    `model._target_=my.Net` stands on top of some option (mlp by default), whose `hidden` means nothing to my.Net.
    A key that the person set is kept: the class will refuse it by name.
    """
    chosen = {key.lstrip("+~"): value for key, _, value in (o.partition("=") for o in overrides)}
    for group, option in own.runtime.choices.items():
        node = config.get(group) if "/" not in str(group) and "@" not in str(group) else None
        if not isinstance(node, DictConfig) or not option or "_target_" not in node:
            continue
        file = _option(hydra, str(group), str(option))
        if file is None or file.get("_target_") == node.get("_target_"):
            continue
        from launcher.components import accepted_names, locate

        names = accepted_names(locate(str(node["_target_"]), str(group)))
        if names is None:
            continue
        ours = {"interval", "warmup", "metric", "mode"} if group == "scheduler" else set()
        with read_write(node), open_dict(node):
            for key in list(node):
                inherited = key in file and f"{group}.{key}" not in chosen and not str(key).startswith("_")
                if inherited and key not in names | ours:
                    del node[key]


def _option(hydra: Hydra, group: str, option: str) -> DictConfig | None:
    """The file of an option as it is written, before overrides."""
    from hydra._internal.config_repository import ConfigRepository

    result = ConfigRepository(hydra.config_loader.get_search_path()).load_config(f"{group}/{option}")
    return result.config if result is not None and isinstance(result.config, DictConfig) else None


def _explain(hydra: Hydra, config_name: str, overrides: list[str], error: Exception) -> str:
    """One clear message from what Hydra or OmegaConf raised."""
    text = str(error)
    cause = str(error.__cause__) if error.__cause__ else ""
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = found[1], found[2]
        known = hydra.config_loader.get_group_options(group)
        if not known:
            return f"{group}={option}: there is no config group {group!r}.{_nearest(group, _groups(hydra))}"
        return f"{group}={option}: no such option. There are: {', '.join(known)}.{_nearest(option, known)}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1].split("@")[0]
        if known := hydra.config_loader.get_group_options(key):
            return f"{key}: choose an option of the group, one of {', '.join(known)}."
        others = [o for o in overrides if o.lstrip("+~").partition("=")[0] != found[1]]
        try:
            whole_config = hydra.compose_config(config_name, others, RunMode.RUN, from_shell=False)
            keys = [*_keys(OmegaConf.to_container(whole_config)), *_groups(hydra)]
        except (HydraException, OmegaConfBaseException):
            keys = []
        return f"{key}: there is no such setting.{_nearest(key, keys)} (+{key}=... adds a new one.)"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{found[1]} is missing: give {found[1]}=..."
    if found := re.search(r"Primary config (?:module|directory).*|Cannot find primary config '([^']+)'", text):
        return f"--config-name: {found[0].splitlines()[0]}"
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        quoted = f', such as "{override(key, value)}"' if value and "'" not in value else ""
        hint = f"write key=value, and quote special characters{quoted}"
        return f"{error.override}: not an override that Hydra can read; {hint}."
    if bad := [o for o in overrides if "=" not in o and not o.startswith("~")]:
        return f"{bad[0]}: not an override; write key=value, such as optimizer.lr=0.1."
    lines = [line.strip() for line in (text + "\n" + cause).splitlines() if line.strip()]
    return " ".join(lines[:3])


def _groups(hydra: Hydra) -> list[str]:
    from hydra.core.object_type import ObjectType

    return hydra.config_loader.get_group_options("", ObjectType.GROUP)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            if key != "hydra":
                yield from _keys(value, f"{prefix}{key}.")


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:  # a right name in the wrong place: `lr` for `optimizer.lr`
        near = [key for key in known if key.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:1]
    return f" Did you mean {near[0]}?" if near else ""


# --- Resuming ------------------------------------------------------------------------------------------------------


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps a run directory from being resumed with another config.

    Args:
        old: The settings that the directory was made with.
        new: The settings it is started with now.

    Returns:
        Lines such as `optimizer.lr: 0.1 -> 0.2`; empty where every difference leaves the result as it is.
    """
    before, after = _leaves(old), _leaves(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) or any(key == f or key.startswith(f + ".") for f in FREE_ON_RESUME):
            continue
        lines.append(f"{key}: {_show(before.get(key, 'absent'))} -> {_show(after.get(key, 'absent'))}")
    return lines


def _leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


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


def check_writable(directory: Path, setting: str = "hydra.run.dir") -> None:
    """Check that a directory could be made, without making it.

    Args:
        directory: The one.
        setting: That names it, for messages.

    Raises:
        ConfigError: A file stands in the way, or the permission is missing.
    """
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
