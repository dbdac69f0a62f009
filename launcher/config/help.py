"""What a command line asks to be shown; --help says of each setting its line of documentation.

The lines come from conf/schema.json, which is made from the schema: reading it takes a millisecond, and importing the
schema a tenth of a second.
"""

import argparse
import copy
import json
import re
from typing import Any

from hydra import main as hydra_main
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from launcher.config import messages
from launcher.config.hydra_api import Hydra, get_args_parser, opened
from launcher.config.places import CONF
from launcher.core.errors import ConfigError

COLUMN = 40  # at which the documentation begins
PLACE = "@CONFIG@"  # in the help, of the config


def documentation(program: str) -> dict[str, str]:
    """The line of documentation of each setting and section, by its dotted name.

    Args:
        program: Whose settings; see schema.MODELS.
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
    """A config in YAML with the documentation of its settings behind them.

    Args:
        text: As OmegaConf writes it.
        about: By dotted names.
    """
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
    """Answer --help, --hydra-help, --cfg, --info and --shell-completion as Hydra does.

    Returns:
        False where the command line asks for none of them.
    """
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
