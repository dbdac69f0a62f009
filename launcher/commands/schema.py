"""A JSON Schema of the settings, by which an editor completes and checks YAML: launcher schema [evaluate].

Write it to a file and name that in the first lines of a config: `# yaml-language-server: $schema=schema.json`.
"""

import argparse
import json
from collections.abc import Sequence


def command(argv: Sequence[str]) -> int:
    """Print the schema of a program's settings."""
    from launcher.config.json_schema import of_program
    from launcher.config.schema import MODELS

    names = [name.replace("_", "-") for name in MODELS]
    parser = argparse.ArgumentParser(prog="launcher schema", description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default="train", choices=names, help="whose settings; default: train")
    print(json.dumps(of_program(parser.parse_args(argv).program.replace("-", "_")), indent=1))
    return 0
