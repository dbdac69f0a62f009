"""A config as a tree of plain values: its leaves, its texts, and what differs between two."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from launcher.config.rules import UNSTATED

RUN_DIR = "${hydra:runtime.output_dir}"  # stands in settings for the run directory, which rank 0 names when it makes it


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


def directory_override(path: Path | str) -> str:
    """The override that names a run directory."""
    return override("hydra.run.dir", str(path))


def override(key: str, text: str) -> str:
    """The override that sets a text, quoted where Hydra's grammar needs it."""
    if not re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        # Inside quotes a backslash is one of its own, but for those before a quote.
        text = "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"
    return f"{key}={text}"


def key_of(override: str) -> str:
    """The setting that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def show_value(value: Any) -> str:
    """A value as a person would write it."""
    if value is UNSTATED:
        return "absent"
    if isinstance(value, str):
        return value if isinstance(unquoted(value), str) else f'"{value}"'
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def unquoted(text: str) -> Any:
    """What YAML makes of a text that stands without quotes."""
    with suppress(ValueError):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    with suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text
