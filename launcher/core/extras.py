"""Packages that come with an extra of this one, imported where they are needed."""

from importlib import import_module
from typing import Any

from launcher.core.errors import ConfigError

DISTRIBUTION = "hydra-accelerate-launcher"  # what pip installs


def import_extra(module: str, need: str, extra: str) -> Any:
    """Import a module of a package that may be missing.

    Args:
        module: Its name.
        need: The setting, what it needs and for what, such as "model=timm needs the package timm".
        extra: That brings the package.

    Raises:
        ConfigError: It does not import.
    """
    try:
        return import_module(module)
    except ImportError as error:
        how = f"pip install '{DISTRIBUTION}[{extra}]'"
        raise ConfigError(f"{need}, which does not import ({error}): {how}") from error
