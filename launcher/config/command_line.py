"""The words of a command line, and what they ask to be shown; --help says of each setting its line of documentation."""

import argparse
import copy
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import main as hydra_main
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

import launcher
from launcher.config import messages
from launcher.config.hydra_api import Hydra, get_args_parser, opened
from launcher.config.places import CONF, check_length
from launcher.core.errors import ConfigError

COLUMN = 40  # at which the documentation begins
PLACE = "@CONFIG@"  # in the help, of the config
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


def documentation(program: str) -> dict[str, str]:
    """The line of documentation of each setting and section of a program, by its dotted name.

    They come from conf/schema.json, which is made from the schema: reading it takes a millisecond, and importing the
    schema a tenth of a second.
    """
    whole: dict[str, Any] = json.loads((CONF / "schema.json").read_text(encoding="utf-8"))
    definitions = whole["$defs"]

    def lines(node: dict[str, Any], prefix: str) -> dict[str, str]:
        found = {}
        for name, one in node["properties"].items():
            section = definitions[one["$ref"].rpartition("/")[2]] if "$ref" in one else {}
            found[f"{prefix}{name}"] = one.get("description", section.get("description", ""))
            found |= lines(section, f"{prefix}{name}.") if section else {}
        return found

    return lines(definitions.get(program, whole), "")


def annotated(text: str, about: dict[str, str]) -> str:
    """A config as OmegaConf writes it, with the documentation of its settings behind them."""
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"( *)([A-Za-z_]\w*):", line):
            path[len(found[1]) // 2 :] = [found[2]]
            if told := about.get(".".join(path)):
                line = f"{line:<{COLUMN}} # {told}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def show(arguments: argparse.Namespace, config_name: str) -> bool:
    """Answer --help, --hydra-help, --cfg, --info and --shell-completion as Hydra does; False where none is asked."""
    if not (arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion):
        return False
    if arguments.shell_completion:  # Hydra reads the shell's request from its own command line
        hydra_main(version_base="1.3", config_path=str(CONF), config_name=config_name)(lambda config: None)()
        return True
    with opened(arguments, config_name) as (hydra, name):
        try:
            if arguments.help:
                print(_help(hydra, name, arguments, documentation(config_name)))
            elif arguments.hydra_help:
                hydra.hydra_help(name, get_args_parser(), arguments)
            elif arguments.cfg:
                hydra.show_cfg(name, arguments.overrides, arguments.cfg, arguments.package, arguments.resolve)
            else:
                hydra.show_info(arguments.info, name, arguments.overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(messages.explain(hydra, name, arguments.overrides, error)) from error
    return True


def _help(hydra: Hydra, config_name: str, arguments: argparse.Namespace, about: dict[str, str]) -> str:
    """Hydra's help for a config, with the documentation of its settings."""
    config = hydra.compose_config(config_name, arguments.overrides, RunMode.RUN)
    HydraConfig.instance().set_config(config)
    own = hydra.get_sanitized_cfg(copy.deepcopy(config), "job")
    shown = annotated(OmegaConf.to_yaml(own, resolve=arguments.resolve), about)
    template = config.hydra.help
    with read_write(template):
        template.template = template.template.replace("$CONFIG", PLACE)  # a `${...}` in it would be taken for one here
    return hydra.get_help(template, own, get_args_parser(), arguments.resolve).replace(PLACE, shown)
