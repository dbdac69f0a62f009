"""A JSON Schema of the settings, by which an editor completes and checks YAML: launcher schema [evaluate].

Write it to a file and name that in the first lines of a config: `# yaml-language-server: $schema=schema.json`.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from launcher.config.schema import MODELS
from launcher.config.setting import LARGEST

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = {"type": "string", "pattern": r"\$\{"}  # `${...}` may stand for any value
TO_REFERENCE = {"$ref": "#/$defs/Reference"}
OTHERS = {  # what a primary config holds beside settings
    "defaults": {"type": "array", "description": "Hydra's list of the options that the config is made of."},
    "hydra": {"type": "object", "description": "Settings of Hydra: hydra.run.dir, hydra.sweep.dir, hydra.launcher."},
    "cluster": {"type": "object", "description": "What a trial of a sweep asks SLURM for."},
}


def command(argv: Sequence[str]) -> int:
    """Print the schema of a program's settings."""
    names = [name.replace("_", "-") for name in MODELS]
    parser = argparse.ArgumentParser(prog="launcher schema", description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default="train", choices=names, help="whose settings; default: train")
    print(json.dumps(of_program(parser.parse_args(argv).program.replace("-", "_")), indent=1))
    return 0


class _ForEditors(GenerateJsonSchema):
    """Without what is pydantic's own: defaults (those are in conf/), titles, and that all must be there."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def of_program(program: str) -> dict[str, Any]:
    """The JSON Schema of a primary config, by its name, or of a part of one: nothing in it is required."""
    made = MODELS[program].model_json_schema(schema_generator=_ForEditors)
    definitions = made.pop("$defs", {})
    for node in (made, *definitions.values()):
        node.pop("required", None)
        node.pop("title", None)
        node["properties"] = {name: _for_yaml(one) for name, one in node["properties"].items()}
    made["properties"] |= OTHERS
    return {"$schema": DIALECT, **made, "$defs": {**definitions, "Reference": REFERENCE}}


def _for_yaml(property: dict[str, Any]) -> dict[str, Any]:
    """A setting of that type, or a `${...}` in its place."""
    plain = _without_marks(property)
    if "$ref" in plain:
        return plain
    about = {"description": plain.pop("description", "")}
    kinds = plain.pop("anyOf", ()) or ([plain] if plain else [])
    return {**about, "anyOf": [*kinds, TO_REFERENCE]} if kinds else about


def _without_marks(node: Any) -> Any:
    """A schema without what only `Setting` reads."""
    if isinstance(node, list):
        return [_without_marks(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_marks(value)
        for key, value in node.items()
        if key not in ("may_differ", "only", "words") and (key, value) != ("maximum", LARGEST)
    }
