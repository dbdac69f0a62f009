"""The words of a command line, and what they ask to be shown."""

import argparse
import re
from contextlib import suppress
from pathlib import Path

from hydra._internal.utils import get_args_parser

import launcher
from launcher.config import messages
from launcher.config.places import check_length
from launcher.core.errors import ConfigError

# Settings and options whose values are places in a file system.
NAMES_A_PLACE = re.compile(
    r"(^|\.)(run_dir|input|output|init_from|dir|subdir|root|path|checkpoint|tokenizer|cache)$|^-+c(onfig-)?(d|p|n)"
)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read a command line by Hydra's own parser; options may stand between the overrides.

    Raises:
        ConfigError: It has an option that is not there, or one that does something else here.
    """
    for word in argv:
        key, equals, value = word.partition("=")
        for part in re.split(r"[\[\],]", value if equals else word):
            if not equals or NAMES_A_PLACE.search(key):
                check_length(Path(part), key if equals else "")
    parser = get_args_parser()
    parser.formatter_class = argparse.RawTextHelpFormatter  # which does not break --version into lines
    parser.allow_abbrev = False  # --experiment=x is no short form of --experimental-rerun

    def refuse(message: str) -> None:
        raise ConfigError(messages.unread_words(message))

    parser.error = refuse  # type: ignore[method-assign, assignment]
    for action in parser._actions:
        if "--version" in action.option_strings:
            action.version = _versions()  # type: ignore[attr-defined]
    arguments = parser.parse_intermixed_args(argv)
    for option, given in (("--resolve", arguments.resolve), ("--package", arguments.package)):
        if given and not (arguments.cfg or (arguments.help and option == "--resolve")):
            raise ConfigError(f"{option}: says how --cfg shows a config. Add --cfg job.")
    if arguments.experimental_rerun is not None:
        place = Path(arguments.experimental_rerun).parent
        run = place.parent if place.name == ".hydra" else Path("RUN_DIR")
        raise ConfigError(
            f"--experimental-rerun: a run is repeated from its directory, launcher rerun {run}, "
            "or gone on with by hydra.run.dir."
        )
    return arguments


def _versions() -> str:
    from importlib import metadata

    lines = [f"launcher {launcher.__version__}"]
    for package in ("hydra-core", "omegaconf", "torch", "accelerate", "wandb"):
        with suppress(metadata.PackageNotFoundError):
            lines.append(f"{package} {metadata.version(package)}")
    return ", ".join(lines)
