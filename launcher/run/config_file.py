"""The settings that a run was made with, as its directory keeps them."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from launcher.config import migrations
from launcher.config.components import COMPONENTS
from launcher.config.composed import Composed
from launcher.core.errors import ConfigError
from launcher.core.files import write_text

CONFIG = ".hydra/config.yaml"


def read_config(path: Path, setting: str) -> dict[str, Any]:
    """The settings that a run was made with.

    Args:
        path: Run directory.
        setting: That names it, for messages.

    Raises:
        ConfigError: They cannot be read, or are of a later launcher.
    """
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(path / CONFIG))
    except (OSError, ValueError, YAMLError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"{setting}={path}: {CONFIG} cannot be read ({what}); the run wrote it.") from error
    if not isinstance(settings, dict) or not set(COMPONENTS) & settings.keys():
        raise ConfigError(f"{setting}={path}: {CONFIG} does not hold the settings of a run; the run wrote it.")
    return migrations.migrated(settings, f"{setting}={path}")


def write_config(path: Path, composed: Composed) -> None:
    """The three files that Hydra leaves in a run directory."""
    (path / ".hydra").mkdir(exist_ok=True)
    for name, text in (
        ("hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": composed.hydra}))),
        ("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(composed.overrides))),
        ("config.yaml", OmegaConf.to_yaml(OmegaConf.create(migrations.stamped(composed.plain())))),
    ):
        write_text(path / ".hydra" / name, text, durable=True)
