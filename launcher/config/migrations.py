"""Configs of earlier launchers, brought up to the names of this one.

`.hydra/config.yaml` of a run directory says `schema_version`, which is no setting: it is written with the file, and
taken out where that is read. A setting that came later needs no step here: the schema says what its absence means.
"""

from collections.abc import Callable, Mapping
from typing import Any

from launcher.config.tree import map_texts
from launcher.core.errors import ConfigError

SCHEMA_VERSION = "schema_version"
# Version 1: every algorithm has a file of its own, and scikit-learn's data sets have one.
MOVED = {
    "launcher.data.digits.load": "launcher.data.sklearn.load_digits",
    "launcher.losses.BinaryCrossEntropy": "torch.nn.BCEWithLogitsLoss",
    "launcher.losses.FocalLoss": "launcher.losses.focal.FocalLoss",
    "launcher.optimizers.Lion": "launcher.optimizers.lion.Lion",
    "launcher.optimizers.Muon": "launcher.optimizers.muon.Muon",
}
TABLES = {f"launcher.data.{name}.load": name for name in ("diabetes", "iris", "wine")}


def _move(settings: dict[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = map_texts(settings, lambda text: MOVED.get(text, text))
    data = moved.get("data")
    if isinstance(data, dict) and data.get("_target_") in TABLES:
        moved["data"] = data | {"_target_": "launcher.data.sklearn.load", "name": TABLES[data["_target_"]]}
    return moved


# Version 2: data=csv became data=table, which leaves out what data=csv kept.
READERS = {"launcher.data.csv.read_alike": "launcher.data.table.read_alike"}


def _table(settings: dict[str, Any]) -> dict[str, Any]:
    data = settings.get("data")
    if isinstance(data, dict) and data.get("_target_") == "launcher.data.csv.load":
        return settings | {"data": data | {"_target_": "launcher.data.table.load", "leave_out": False}}
    return settings


# One for each version, from the one before it.
MIGRATIONS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (_move, _table)
VERSION = len(MIGRATIONS)


def stamped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a run directory keeps them."""
    return {SCHEMA_VERSION: VERSION, **settings}


def migrated(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings that a run directory kept, as this launcher names them.

    Args:
        settings: Plain, with their version; a run from before there were versions has none.
        where: The setting and the directory that they are from, for messages.

    Raises:
        ConfigError: They are of a later launcher.
    """
    found = {str(key): value for key, value in settings.items()}
    version = found.pop(SCHEMA_VERSION, 0)
    if not isinstance(version, int) or not 0 <= version <= VERSION:
        raise ConfigError(
            f"{where}: its settings have schema_version={version}, and this launcher knows versions up to {VERSION}. "
            "Use the launcher that made it, or a later one."
        )
    for step in MIGRATIONS[version:]:
        found = step(found)
    return found


def migrated_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run directory kept of its data, data.json, with the names of this launcher."""
    found: dict[str, Any] = map_texts(dict(record), lambda text: READERS.get(text, text))
    return found
