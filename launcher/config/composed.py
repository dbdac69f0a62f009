"""A composed and checked config."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from launcher.config.tree import RUN_DIR, at, directory_override, leaves, texts, with_leaves


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
        return replace(self, settings=node_of(settings))

    def as_begun(self, before: Mapping[str, Any]) -> "Composed":
        """The same, with what the clock and Hydra said when the run began with the settings `before`."""
        then = leaves(before)
        return self.having(with_leaves(self.plain(), {key: then[key] for key in self.told & then.keys()}))


def node_of(settings: Mapping[str, Any]) -> DictConfig:
    """Plain settings as a config that has these and no others."""
    node = OmegaConf.create(dict(settings))
    OmegaConf.set_struct(node, True)
    return node


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

    The directory is None where it is not known yet.
    """
    whole = OmegaConf.create({"hydra": hydra_node(hydra)})
    with read_write(whole):
        whole.hydra.runtime.output_dir = "???" if directory is None else str(Path(directory).resolve())
    HydraConfig.instance().set_config(whole)
