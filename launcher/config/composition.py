"""Composition of conf/ and a command line to the checked config of a run, a trial or a command.

Nothing here imports torch, so that a wrong setting is answered in well under a second.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from launcher.config import messages, trust
from launcher.config.accelerate_flags import adopt, parent_command
from launcher.config.checks import check_known, check_settings, filled, needed
from launcher.config.command_line import parse_arguments, show
from launcher.config.components import COMPONENTS, locate, named
from launcher.config.composed import Composed, node_of
from launcher.config.hydra_api import Hydra, asked_resolvers, detach, opened, read_file
from launcher.config.migrations import SCHEMA_VERSION, migrated
from launcher.config.places import CONF, check_length
from launcher.config.tree import RUN_DIR, key_of, leaves, map_texts, override, show_value, texts
from launcher.core.errors import ConfigError


class SweepAsked(ConfigError):
    """The config asks for a sweep (hydra.mode=MULTIRUN) where one run was to be composed."""


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
    program: str = "train",
    trial: Mapping[str, Any] | None = None,
) -> Composed:
    """Compose one run's config, resolve it and check it against its schema.

    Args:
        hydra: Over conf/.
        config_name: The primary config.
        overrides: The command line's.
        program: Whose settings they are; see schema.MODELS.
        trial: Of a sweep's trial, what Hydra says of it in hydra.job: num, id, override_dirname.

    Raises:
        ConfigError: Hydra cannot compose it, or a setting is wrong.
        SweepAsked: It is a sweep, and `trial` is None.
    """
    before = HydraConfig.instance().cfg
    key = "hydra.run.dir" if trial is None else "hydra.sweep.subdir"
    try:
        config = _compose_node(hydra, config_name, overrides, trial)
        HydraConfig.instance().set_config(config)
        plain, told, local = _resolved(hydra, config, overrides, program)
        asked_resolvers.clear()
        own, directory = _own_node(config, key)
        local = local or bool(asked_resolvers)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        several = re.search("Ambiguous value|requires --multirun", str(error)) and trial is None
        if several and hydra.get_mode(config_name, overrides) == RunMode.MULTIRUN:
            raise SweepAsked("hydra.mode=MULTIRUN: this is one run. Name one value for each setting.") from error
        raise ConfigError(messages.explain(hydra, config_name, overrides, error)) from error
    finally:
        HydraConfig.instance().cfg = before
    _check_hydra(own, key, directory)
    for word in overrides:
        if key_of(word) == "local" and word[0] != "~" and read_file(hydra, word.lstrip("+").replace("=", "/")) is None:
            known = ", ".join(hydra.config_loader.get_group_options("local"))
            raise ConfigError(f"{word}: no such option. There are: {known or 'none, since there is no conf/local/'}.")
    for name, value in leaves(plain).items():
        if any("${" in text.replace(RUN_DIR, "") for text in texts([value])):
            raise ConfigError(f"{name}={show_value(value)}: a text here cannot hold ${{, which begins a reference.")
    if plain.get("mixed_precision") is False:  # an unquoted `no` in somebody's YAML
        plain["mixed_precision"] = "no"
    for run_dir in _run_directories(own):
        trust.check_targets(plain, run_dir)
    plain = filled(plain, program)
    check_settings(plain, program)
    environment: Mapping[str, str] = os.environ
    if (
        isinstance(devices := own.launcher.get("devices_per_run"), int | str)
        and trial is not None
        and devices != "auto"
    ):
        least = str(devices).partition("-")[0]  # of a range, which is checked by its launcher
        environment = {**environment, "WORLD_SIZE": least}  # of the trial, which shares its batch among so many
    if "mixed_precision" in plain and (more := adopt(plain, overrides, environment, parent_command())):
        return replace(compose(hydra, config_name, [*overrides, *more], program, trial), adopted=more)
    return Composed(node_of(plain), own, list(overrides), told, local)


def _compose_node(hydra: Hydra, config_name: str, overrides: list[str], trial: Mapping[str, Any] | None) -> DictConfig:
    """The config as Hydra composes it, which knows the mode and the trial."""
    try:
        config: DictConfig = hydra.compose_config(config_name, overrides, RunMode.RUN, from_shell=False)
    except KeyError as error:
        raise ConfigError(f"hydra.job.env_copy: the environment has no variable {error}.") from error
    if trial is None and config.hydra.mode == RunMode.MULTIRUN:
        raise SweepAsked("hydra.mode=MULTIRUN: this is one run. Name one value for each setting.")
    config.hydra.mode = RunMode.RUN if trial is None else RunMode.MULTIRUN
    config.hydra.job.update(trial or {})
    return config


def _own_node(config: DictConfig, key: str) -> tuple[DictConfig, str]:
    """Hydra's node apart from the settings, and the directory that the setting `key` of it names, both resolved."""
    own = config.hydra
    with read_write(own):
        directory = str(OmegaConf.select(config, key))
        OmegaConf.update(config, key, directory)
        own.job.env_set = OmegaConf.to_container(own.job.env_set, resolve=True)
        detach(own)
    OmegaConf.set_readonly(own, False)
    return own, directory


def _check_hydra(own: DictConfig, key: str, directory: str) -> None:
    """Check the settings of Hydra itself, and the directory that one of them names."""
    if RUN_DIR in directory:
        raise ConfigError(f"{key}={directory}: refers to itself.")
    if not directory:
        raise ConfigError(f"{key}: names no directory; {key}=. is the one that you are in.")
    check_length(Path(directory), key)
    if own.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: a run stays in the directory that it is started in. A setting that is "
            f"'{RUN_DIR}' is the run's own."
        )
    if own.output_subdir != ".hydra":
        raise ConfigError(
            f"hydra.output_subdir={show_value(own.output_subdir)}: must be .hydra, by which a run is known."
        )
    if own.callbacks:
        raise ConfigError("hydra.callbacks: a run calls none. Put what they do into a class of your own.")


def _resolved(
    hydra: Hydra, config: DictConfig, overrides: list[str], program: str
) -> tuple[dict[str, Any], frozenset[str], bool]:
    """The settings of a config with their `${...}` resolved, and Composed's `told` and `local`."""
    from launcher.config.schema import SCHEMAS

    schema = SCHEMAS[program]
    for word in overrides:
        key = word[1:].partition("=")[0] if word.startswith("~") else ""
        if key in schema and (key in COMPONENTS or key.partition(".")[0] not in COMPONENTS):
            raise ConfigError(f"{word}: a run cannot do without {key}; {needed(schema[key])}.")
    _drop_inherited(hydra, config, overrides)
    raw: Any = OmegaConf.to_container(config)
    text = "\n".join(texts(raw))
    del raw["hydra"]
    places = _run_directories(config.hydra)
    if (places or SCHEMA_VERSION in raw) and SCHEMA_VERSION not in map(key_of, overrides):  # or of a copy of its config
        raw = migrated(raw, f"run_dir={places[0]}" if places else f"--config-name={config.hydra.job.config_name}")
    raw.pop("cluster", None)  # where a run is submitted to is no setting of the run
    check_known(raw, config.hydra, schema, text)
    # `${hydra.job.num}` refers to a node that is not there any more; `${hydra:job.num}` is the same.
    settings = OmegaConf.create(map_texts(raw, lambda text: re.sub(r"\$\{hydra\.", "${hydra:", text)))
    asked_resolvers.clear()
    plain: Any = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    told = frozenset(_told_by(settings)) if asked_resolvers else frozenset()
    return {str(key): value for key, value in plain.items()}, told, bool(told) or "oc.env" in text


def _run_directories(own: DictConfig) -> list[Path]:
    """The run directories that a config is taken from: --config-path=RUN_DIR/.hydra --config-name=config."""
    places = [Path(source.path) for source in own.runtime.config_sources if source.schema == "file"]
    return [place.parent for place in places if place.name == ".hydra"]


def _told_by(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that ask the clock or Hydra, by themselves or by what they refer to."""
    for key in map(str, node):
        asked_resolvers.clear()
        value = node[key]
        if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(node, key):
            yield from _told_by(value, f"{prefix}{key}.")
            continue
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        if asked_resolvers:
            yield from leaves({key: value}, prefix)


def compose_tool(config_name: str, argv: list[str]) -> Composed | None:
    """Compose the config of a command that takes up a run.

    A word that is no override names the run, and settings of the run's data source (`data.root=...`) are added.

    Args:
        config_name: Its file in conf/.
        argv: The words of the command line.

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
            word = override(key, value)  # a trial of a sweep is called optimizer=adam,seed=1
        overrides.append(f"++{word}" if word.startswith("data.") else word)
    with opened(arguments, config_name) as (hydra, name):
        return compose(hydra, name, overrides, config_name)


def _drop_inherited(hydra: Hydra, config: DictConfig, overrides: list[str]) -> None:
    """Where a person's own `_target_` replaced an option's, leave out that option's keys that the class does not name.

    `model._target_=my.Net` stands on top of some option (mlp by default), whose `hidden` means nothing to my.Net, not
    even where it would take anything (`**kwargs`). A key that the person set is kept, on the command line or in a file
    of their own: the class will refuse it by name.
    """
    chosen = {key_of(word) for word in overrides}
    for group, option in config.hydra.runtime.choices.items():
        node = config.get(group) if "/" not in str(group) and "@" not in str(group) else None
        if not isinstance(node, DictConfig) or not option or "_target_" not in node:
            continue
        found = read_file(hydra, f"{group}/{option}")
        if found is None or found[1].get("_target_") == node.get("_target_"):
            continue
        names = named(locate(str(node["_target_"]), str(group)))
        names |= {"interval", "warmup", "metric", "mode"} if group == "scheduler" else set()
        names |= _set_by_files(hydra, config.hydra, overrides, str(group), f"{group}/{option}")
        with read_write(node), open_dict(node):
            for key in list(node):
                inherited = key in found[1] and f"{group}.{key}" not in chosen and not str(key).startswith("_")
                if inherited and key not in names:
                    del node[key]


def _set_by_files(hydra: Hydra, own: DictConfig, overrides: list[str], group: str, option: str) -> set[str]:
    """The settings of a group that files of the person's own set, beside that of the option."""
    found: set[str] = set()
    made_of = hydra.config_loader.compute_defaults_list(own.job.config_name, overrides, RunMode.RUN).defaults
    for default in made_of:
        if default.config_path in (None, option) or str(default.config_path).startswith("hydra/"):
            continue
        loaded = read_file(hydra, str(default.config_path))
        if loaded is None or loaded[0] == f"file://{CONF}":
            continue
        package = default.package or ""
        node: Any = loaded[1] if package == group else loaded[1].get(group) if package == "" else None
        found |= {str(key) for key in node} if isinstance(node, DictConfig) else set()
    return found
