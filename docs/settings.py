"""Write docs/settings.md, the reference page of settings, and conf/schema.json: python docs/settings.py."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf  # noqa: E402

from launcher.commands.schema import of_program  # noqa: E402
from launcher.config.schema import SCHEMAS  # noqa: E402
from launcher.config.tree import UNSTATED, get, show_value  # noqa: E402

PAGE, JSON = ROOT / "docs/settings.md", ROOT / "conf/schema.json"
OPTIONS = {"adapter": "none", "batch": "default", "strategy": "ddp"}  # whose defaults the page shows
PROGRAMS = {
    "find_lr": "launcher find-lr, beside those of a training run",
    "evaluate": "launcher evaluate",
    "predict": "launcher predict",
    "export": "launcher export",
    "rerun": "launcher rerun",
}
HEAD = """\
# Settings

Every setting of a training run, with its default, what it may be and what it is. Components (`data`, `model`, `loss`,
`optimizer`, `scheduler`) also take every argument of their class; their defaults are those of the option chosen, in
`conf/`. Settings marked with a star may differ when a run is resumed; [Resuming](fault_tolerance.md#resuming) has the
conditions of `epochs` and `max_steps`, and those on which `early_stopping.*` and the place of the data may differ too.

This page is made from the code by `python docs/settings.py`; `launcher schema` prints the same as a JSON Schema.
"""


def shown(value: Any) -> str:
    """A default, as a person would write it."""
    return "" if value is UNSTATED else f"`{show_value(value)}`"


def row(key: str, default: Any, known: Any) -> str:
    """The line of a setting."""
    star = "\\*" if known.marked("may_differ") else ""
    words = known.words.replace("|", "\\|").replace("*", "\\*")
    return f"| `{key}`{star} | {shown(default)} | {words} | {known.about} |"


def table(keys: list[str], program: str, defaults: Any) -> Iterator[str]:
    """The lines of a table."""
    yield from ("| setting | default | may be | what it is |", "| --- | --- | --- | --- |")
    for key in keys:
        yield row(key, get(defaults, key), SCHEMAS[program][key])
    yield ""


def defaults_of(program: str) -> Any:
    """What the primary config says, and the options that stand for all of their group."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{program}.yaml"))
    if program == "train":
        for group, option in OPTIONS.items():
            settings[group] = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/{group}/{option}.yaml"))
        fsdp: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/strategy/fsdp.yaml"))
        settings["strategy"] = fsdp | settings["strategy"]
        lora: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/adapter/lora.yaml"))
        settings["adapter"] = lora | settings["adapter"]
    return {key: UNSTATED if value == "???" else value for key, value in settings.items()}


def page() -> str:
    """The whole page."""
    known, defaults = SCHEMAS["train"], defaults_of("train")
    lines = [HEAD]
    lines += table([key for key in known if "." not in key and not known[key].section], "train", defaults)
    for group in (key for key in known if known[key].section):
        lines += [f"## {group}", "", known[group].about, ""]
        lines += table([key for key in known if key.startswith(f"{group}.")], "train", defaults)
    for program, title in PROGRAMS.items():
        keys = [key for key in SCHEMAS[program] if key not in known or program != "find_lr"]
        lines += [f"## {title}", ""]
        lines += table([key for key in keys if not SCHEMAS[program][key].section], program, defaults_of(program))
    return "\n".join(lines).rstrip() + "\n"


def schema() -> str:
    """conf/schema.json: for conf/train.yaml and conf/find_lr.yaml, and beneath `$defs` for the other programs."""
    whole = of_program("find_lr")
    for program in ("evaluate", "predict", "export", "rerun"):
        one = of_program(program)
        whole["$defs"] |= one.pop("$defs")
        whole["$defs"][program] = {key: value for key, value in one.items() if key != "$schema"}
    return re.sub(r"\n {5,}", " ", json.dumps(whole, indent=1)) + "\n"  # a line for each setting of a section


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    JSON.write_text(schema(), encoding="utf-8")
