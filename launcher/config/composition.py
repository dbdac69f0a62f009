"""Composition of conf/, the typed schema of its settings, and every check that needs no device.

Nothing here imports torch, so that a wrong setting is answered in well under a second.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hydra import main as hydra_main
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from launcher.config import messages
from launcher.config.accelerate_flags import adopt, parent_command
from launcher.config.checks import check_known, check_settings, filled, needed
from launcher.config.command_line import parse_arguments
from launcher.config.composed import Composed
from launcher.config.places import CONF, check_length
from launcher.config.rules import Rule
from launcher.config.schema import COMPONENTS, SCHEMA
from launcher.config.tree import RUN_DIR, key_of, leaves, map_texts, override, show_value, texts
from launcher.core.errors import ConfigError

# --- The schema: what a value may be -------------------------------------------------------------------------------


# --- Composition ---------------------------------------------------------------------------------------------------


class SweepAsked(ConfigError):
    """The config asks for a sweep (hydra.mode=MULTIRUN) where one run was to be composed."""


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
            raise ConfigError(f"{name}={show_value(value)}: a text here cannot hold ${{, which begins a reference.")
    check_length(Path(directory), key)
    for word in overrides:
        if key_of(word) == "local" and word[0] != "~" and _file(hydra, word.lstrip("+").replace("=", "/")) is None:
            known = ", ".join(hydra.config_loader.get_group_options("local"))
            raise ConfigError(f"{word}: no such option. There are: {known or 'none, since there is no conf/local/'}.")
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
    if plain.get("mixed_precision") is False:  # an unquoted `no` in somebody's YAML
        plain["mixed_precision"] = "no"
    for source in own.runtime.config_sources:
        if source.schema == "file" and Path(source.path).name == ".hydra":  # a run directory's
            from launcher.config import trust

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
            raise ConfigError(f"{word}: a run cannot do without {key}; {needed(schema[key])}.")
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
            word = override(key, value)  # a trial of a sweep is called optimizer=adam,seed=1
        overrides.append(f"++{word}" if word.startswith("data.") else word)
    with opened(arguments, config_name) as (hydra, name):
        return compose(hydra, name, overrides, schema)


class Task:
    """What Hydra's launchers get for a task function: not the training itself, but how to compose a trial of the sweep.

    Attributes:
        failed: Points that a launcher saw fail.
        stop: Its request to stop, which lasts over all that a sweeper hands it.
        swept: Settings that have several values in all of the sweep, of which a launcher may see one at a time.
    """

    def __init__(self, hydra: Hydra, config_name: str) -> None:
        self._hydra, self._config_name, self._said = hydra, config_name, False
        self.failed: list[str] = []
        self.stop: Any = None
        self.swept: frozenset[str] = frozenset()

    def compose(self, overrides: list[str], job: Mapping[str, Any]) -> Composed:
        """Compose and check a trial of the sweep.

        Args:
            overrides: The command line's.
            job: What Hydra says of it in hydra.job.
        """
        trial = compose(self._hydra, self._config_name, overrides, trial=job)
        if trial.adopted and not self._said:
            self._said = True
            print(f"adopted    {' '.join(trial.adopted)}, as accelerate launch was asked to", flush=True)
        if trial.settings.get("check"):
            raise ConfigError(f"check={show_value(trial.settings.check)}: checks one run; leave out -m.")
        return trial


def sweep(hydra: Hydra, config_name: str, overrides: list[str]) -> int:
    """Run a sweep (-m): Hydra's sweeper makes the trials, its launcher runs each in processes of its own.

    Returns:
        0 where every trial went well, else 1.

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
        if not task.failed:  # else a sweeper gave up because of a trial that failed, and the launcher said so
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
        from launcher.config.components import locate, named

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
    """An option as it is written, over the files that its own defaults name, before overrides."""
    result = ConfigRepository(hydra.config_loader.get_search_path()).load_config(name)
    if result is None or not isinstance(result.config, DictConfig):
        return None
    group = name.rpartition("/")[0]
    named = [str(one.path) for one in result.defaults_list or () if isinstance(one, ConfigDefault)]
    bases = [_file(hydra, path[1:] if path[0] == "/" else f"{group}/{path}") for path in named if path != "_self_"]
    merged = OmegaConf.merge(*filter(None, bases), result.config)
    assert isinstance(merged, DictConfig)
    return merged


# --- Resuming ------------------------------------------------------------------------------------------------------


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
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(messages.explain(hydra, name, arguments.overrides, error)) from error
    return True
