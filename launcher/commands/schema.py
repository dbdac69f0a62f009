"""A JSON Schema of the settings, by which an editor completes and checks YAML: launcher schema [evaluate].

Write it to a file and name that in the first lines of a config: `# yaml-language-server: $schema=schema.json`.
"""

import argparse
import json
import sys

from launcher.distributed.watch import guarded


def main() -> None:
    """The console command: exit status 0, or 2 for wrong input."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Print the schema of a program's settings."""
    from launcher.config.json_schema import of_program
    from launcher.config.schema import MODELS

    names = [name.replace("_", "-") for name in MODELS]
    parser = argparse.ArgumentParser(prog="launcher schema", description="Print a JSON Schema of a program's settings.")
    parser.add_argument("program", nargs="?", default="train", choices=names, help="whose settings; default: train")
    print(json.dumps(of_program(parser.parse_args(argv).program.replace("-", "_")), indent=1))
    return 0
