"""Hydra over conf/, and all that the launcher uses of Hydra without a public name.

Hydra's public API (`hydra.main`, `hydra.compose`) is one program's: `main` reads sys.argv, makes a directory and sets
up logging before anything is checked; `compose` sweeps nothing and shows no help. So these stand in for it:

- `Hydra`: composes, shows help and configs, starts a sweeper, and has the loader that knows each group's options.
- `get_args_parser`: Hydra's command line, so that --cfg, --config-dir and the like mean what they mean elsewhere.
- `create_config_search_path`: where the files are; --config-dir goes before conf/, as with `main`.
- `ConfigRepository`: one file as it is written, before overrides, to tell its keys from those of another.
- `basic_sweeper`: makes every combination of what is swept; hydra_plugins/ changes what happens to them.

tests/config/test_hydra_api.py composes with the newest pre-release of Hydra, and notices when one of them goes.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from launcher.config.places import CONF
from launcher.config.tree import RUN_DIR
from launcher.core.errors import ConfigError

__all__ = ["Hydra", "asked_resolvers", "basic_sweeper", "detach", "get_args_parser", "opened", "read_file"]

asked_resolvers: set[str] = set()  # those that were asked since it was cleared last, of `now` and `hydra`


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
    _rename_those_of_plugins()
    moment = datetime.now()  # one for all that a command composes: each run of a sweep, and the sweep itself
    OmegaConf.register_new_resolver("now", lambda pattern: _asked("now", moment.strftime(pattern)), replace=True)
    OmegaConf.register_new_resolver("hydra", lambda key: _asked("hydra", _of_hydra(key)), replace=True)
    try:
        yield hydra, arguments.config_name or config_name
    finally:
        GlobalHydra.instance().clear()


def _rename_those_of_plugins() -> None:
    """Call a launcher or a sweeper of another package `hydra_NAME` where a file of conf/ has its name.

    Hydra would take the other for the schema of the file, and refuse its settings.
    """
    store = ConfigStore.instance()
    for file in (CONF / "hydra").glob("*/*.yaml"):
        group = store.repo.get("hydra", {}).get(file.parent.name, {})
        if (other := group.pop(file.name, None)) is not None:
            store.store(f"hydra_{file.stem}", other.node, f"hydra/{file.parent.name}", other.package, other.provider)


def basic_sweeper() -> Any:
    """Hydra's own sweeper, as its search for plugins has made it.

    That runs the sweeper's module anew, so a class that was imported before is another than the one in its methods.
    """
    from hydra._internal.core_plugins import basic_sweeper

    return basic_sweeper.BasicSweeper


def read_file(hydra: Hydra, name: str) -> tuple[str, DictConfig] | None:
    """Where an option is from, and what it says over the files that its own defaults name; None where there is none."""
    found = ConfigRepository(hydra.config_loader.get_search_path()).load_config(name)
    if found is None or not isinstance(found.config, DictConfig):
        return None
    group = name.rpartition("/")[0]
    named = [str(one.path) for one in found.defaults_list or () if isinstance(one, ConfigDefault) and one.path]
    bases = [read_file(hydra, path[1:] if path[0] == "/" else f"{group}/{path}") for path in named if path != "_self_"]
    merged = OmegaConf.merge(*(base[1] for base in bases if base), found.config)
    assert isinstance(merged, DictConfig)
    return found.path, merged


def detach(node: DictConfig) -> None:
    """Make a part of a config one of its own, of which no copy copies the whole."""
    node._set_parent(None)


def _asked(resolver: str, value: Any) -> Any:
    asked_resolvers.add(resolver)
    return value


def _of_hydra(key: str) -> Any:
    """What `${hydra:key}` is: Hydra's own answer, but for a name that it does not have."""
    if key == "runtime.output_dir":
        return RUN_DIR
    node: Any = HydraConfig.get()
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):
            raise ConfigError(f"Hydra has no {key}; --cfg hydra shows what it has.")
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return node
