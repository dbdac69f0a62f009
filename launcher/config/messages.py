"""What a person is told whose words do not compose: a sentence or two that name the setting and what would be right."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.tree import key_of, override

if TYPE_CHECKING:
    from launcher.config.hydra_api import Hydra

FP16_ON_CPU = (
    "mixed_precision=fp16: a CPU has no fp16 training (Accelerate would run fp32 in silence). "
    "Use mixed_precision=bf16 or no, or a GPU."
)

# What switches off or replaces what somebody sets to null, to a word or deletes.
GROUP_HINTS: dict[str, str] = {
    "batch": "batch.global_size={value} sets the number of samples per update",
    "optimizer": "optimizer.lr={value} sets the learning rate",
    "scheduler": "scheduler=constant leaves the learning rate as it is",
    "experiment": "leave experiment out for none",
    "debug": "leave debug out for none",
    "strategy": "strategy=ddp is the usual one",
    "cluster": "cluster=default leaves all to the site",
}


@cache
def aliases() -> dict[str, str]:
    """What users of other trainers type: the setting that takes the same value here, or a sentence."""
    read = yaml.safe_load(Path(__file__).with_name("aliases.yaml").read_text(encoding="utf-8"))
    said = [*read["settings"].items(), *((one["say"], one["to"]) for one in read["sentences"])]
    return {name: advice for advice, names in said for name in names.split()}


def hint(key: str, value: str | None, known: Sequence[str]) -> str:
    """What may have been meant by a setting that is not among the known ones: a space and a sentence, or nothing."""
    word = key.lstrip("+~-").replace("-", "_")
    group, _, last = word.rpartition(".")
    leaves = [name.rpartition(".")[2] for name in known if group and name.rpartition(".")[0] == group]
    advice = aliases().get(last.lower())
    if near := difflib.get_close_matches(last, leaves, n=1, cutoff=0.75):
        return f" Did you mean {group}.{near[0]}?"
    if advice not in (None, word) and not (leaves and " " in advice):
        return f" {advice}" if " " in advice else f" Use {advice}={'...' if value in (None, '') else value}."
    if leaves:
        return f" {group} has: {', '.join(leaves)}." if len(leaves) < 20 else ""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:  # a right name in the wrong place: `lr` for `optimizer.lr`
        near = [name for name in known if name.rpartition(".")[2] == last][:1]
    return f" Did you mean {near[0]}?" if near else ""


def explain(hydra: "Hydra", config_name: str, overrides: list[str], error: Exception) -> str:
    """One clear message from what Hydra or OmegaConf raised, or YAML."""
    text = str(error)
    cause = error.__cause__ or error
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: this is no YAML: {error.problem or error.context}."
    if isinstance(error, OverrideParseException):
        return _unreadable(hydra, error.override)
    if found := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        group, option = found[1], found[2]
        known = hydra.config_loader.get_group_options(group)
        if not known:
            return f"{group}={option}: there is no config group {group!r}.{hint(group, option, _groups(hydra))}"
        what = "no such option" if option else "names no option"
        near = difflib.get_close_matches(option, known, n=1)
        return f"{group}={option}: {what}. There are: {', '.join(known)}.{f' Did you mean {near[0]}?' if near else ''}"
    if "Config group override must be a string or a list" in text and (said := _bad_choice(hydra, overrides)):
        return said
    if found := re.search(r"Multiple values for ([\w/]+)", text):
        option = next((word for word in overrides if word.startswith(f"+{found[1]}=")), f"+{found[1]}=...")
        return f"{option}: there is a choice of {found[1]} already; write {option[1:]}."
    if found := re.search(r"Could not override '([^']+)'", text):
        return _no_such_setting(hydra, config_name, overrides, found[1], text)
    if "Cannot merge DictConfig with ListConfig" in str(cause):
        key, _, value = text.partition("override ")[2].partition("\n")[0].partition("=")
        right = f"be a list; write {key}=[...]" if value.startswith("{") else f"be no list; write {key}.NAME=..."
        return f"{key}={short(value)}: must {right}."
    if found := re.search(r"(?:argument|parameters) '([^'=]+)=(.*?)'(?:\n| requires)", text):
        return (
            f"{found[1]}={found[2]}: these are several values. With -m a sweep tries each of them; "
            f"a list is written {found[1]}=[...], and a text with a comma {found[1]}='\"...\"'."
        )
    if found := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{found[1]}: there is one already; write {found[1]}=... without the plus."
    if found := re.search(r"Could not delete from config. '([^']+)' does not exist", text):
        return f"~{found[1]}: there is no such setting to leave out.{hint(found[1], None, _known(hydra, config_name))}"
    if found := re.search(r"Could not delete from config. The value of '([^']+)' is (.*) and not (.*)\.", text):
        return f"~{found[1]}={found[3]}: its value is {found[2]}; write ~{found[1]} to leave it out whatever it is."
    if found := re.search(r"Override (\S+) looks like a config group override, but config group '([^']+)'", text):
        return f"{found[1]}: there is no config group {found[2]!r}.{hint(found[2], None, _groups(hydra))}"
    if "hydra.runtime.output_dir" in text:
        return "hydra.run.dir: refers to itself by hydra.runtime.output_dir."
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        key = whole[1] if (whole := re.search(r"full_key: (\S+)", text)) else found[1]
        return f"{key} is missing: give {key}=..."
    if isinstance(cause, OmegaConfBaseException) and (said := _bad_reference(hydra, config_name, str(cause))):
        return said
    if found := re.search(r"Primary config (?:module|directory)[^.]*|Cannot find primary config '([^']+)'", text):
        if found[1] is None:
            return f"--config-path: there is no such directory ({found[0]})."
        there = [name for name in hydra.config_loader.get_group_options("") if not name.startswith("_")]
        return f"--config-name={found[1]}: there is no such config. There are: {', '.join(there)}."
    if bad := [o for o in overrides if "=" not in o and not o.startswith("~")]:
        return _unreadable(hydra, bad[0])
    lines = [line.strip() for line in (f"{text}\n{error.__cause__ or ''}").splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"(full_key|object_type|reference_type): ?|object_type=", line)]
    return " ".join(lines[:4])


def unread_words(message: str) -> str:
    """What argparse says of options that nobody knows, as the settings that they may have been meant for."""
    found = re.search(r"unrecognized arguments: -*([\w.-]+)(?:=(\S*))?", message)
    if found is None:
        return f"{message[0].upper()}{message[1:]}. --help shows what there is."
    key, value = found[1].replace("-", "_"), found[2] or "VALUE"
    advice = aliases().get(key.lower(), key)
    told = f", as {advice}={value}." if " " not in advice else f". {advice}"
    agent = " In a sweep of W&B: ${args_no_hyphens} in its command." if "WANDB_SWEEP_ID" in os.environ else ""
    return f"{message.split()[2]}: no such option. Settings are written without dashes{told}{agent}"


def short(text: str) -> str:
    """A text that fits into a message."""
    return text if len(text) <= 160 else f"{text[:100]}...{text[-20:]}"


def _unreadable(hydra: "Hydra", word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or " " in key:
        name = aliases().get(word.lower(), word)
        example = f"{name}=VALUE" if re.fullmatch(r"[A-Za-z_][\w.]*", name) else "optimizer.lr=0.1"
        for group in _groups(hydra):
            if word in hydra.config_loader.get_group_options(group):
                example = f"{group}={word}"
        return f"{short(word)}: not an override that Hydra can read; write key=value, such as {short(example)}."
    quoted = f', such as "{override(key, value)}"' if value and "'" not in value else ""
    return (
        f"{short(word)}: not an override that Hydra can read; write key=value, and quote special characters"
        f"{short(quoted)}."
    )


def _bad_choice(hydra: "Hydra", overrides: list[str]) -> str | None:
    """Of a choice that is a number, null or true: for the first group that has one."""
    groups = _groups(hydra)
    for parsed in OverridesParser.create().parse_overrides(overrides):
        group, value = parsed.key_or_group, parsed.value()
        if group == "":
            return f"{parsed.input_line}: names no setting; write key=value, such as optimizer.lr=0.1."
        if group in groups and not isinstance(value, str | list | dict):
            known = ", ".join(hydra.config_loader.get_group_options(group))
            given = str(parsed.input_line).lstrip("+").partition("=")[2]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            told = GROUP_HINTS.get(group, f"{group}.NAME={given} sets one of its settings" if number else "")
            if value is None and group not in ("experiment", "debug", "scheduler", "strategy", "cluster"):
                told = "a run needs one" + (", and batch=default is the usual one" if group == "batch" else "")
            elif not number and "{value}" in told:
                told = ""
            told = f"; {told.format(value=given)}" if told else ""
            return f"{group}={given}: choose an option, one of {known}{told}."
    return None


def _no_such_setting(hydra: "Hydra", config_name: str, overrides: list[str], found: str, text: str) -> str:
    key = found.split("@")[0]
    file = re.match(r"In '([^']+)': Could not override '[^']+'\.\s*No match in the defaults list", text)
    if file and file[1] != config_name:
        near = hint(key, None, _groups(hydra))
        return f"{file[1]}.yaml: `override /{key}` finds no group {key!r} to choose from.{near}"
    given = next((word.partition("=")[2] for word in overrides if key_of(word) == found), None)
    if key in _groups(hydra):
        known = ", ".join(hydra.config_loader.get_group_options(key))
        if "@" in found:
            return f"{found}: {key} goes to no other place here; write {key}=..., one of {known}."
        if f"In '{config_name}'" in text or "No match in the defaults list" in text:
            return (
                f"{key}={given}: the config {config_name!r} has no group {key!r} to choose from; it is one that was "
                f"composed, or its defaults do not name {key}. Set {key}.NAME=... itself; a run is repeated with "
                "launcher rerun RUN_DIR."
            )
        return f"{key}: choose an option of the group, one of {known}."
    known_here = _known(hydra, config_name, [word for word in overrides if key_of(word) != found])
    group = key.partition(".")[0]
    if group == "hydra":
        return f"{key}: Hydra has no such setting; --cfg hydra shows what it has."
    told = hint(key, given, known_here)
    if f"{group}._target_" in known_here and "." in key:
        told += f" (+{key}={given if given is not None else '...'} hands it to the class of {group}.)"
    return f"{key}: there is no such setting.{told}"


def _bad_reference(hydra: "Hydra", config_name: str, text: str) -> str | None:
    """Of a `${...}` that does not resolve."""
    where = re.search(r"full_key: (\S+)", text)
    key = where[1] if where else "config"
    if found := re.search(r"ConfigError raised while resolving interpolation: (.*)", text):
        return f"{key}: {found[1]}"
    if found := re.search(r"Interpolation key '([^']+)' not found", text):
        near = hint(found[1], None, _known(hydra, config_name)) if where and not key.startswith("hydra.") else ""
        return f"{key}: ${{{found[1]}}} refers to a setting that is not there.{near}"
    if found := re.search(r"Environment variable '([^']+)' not found", text):
        return f"{key}: the environment has no variable {found[1]}; ${{oc.env:{found[1]},DEFAULT}} gives it a default."
    if found := re.search(r"Unsupported interpolation type (\S+)", text):
        return f"{key}: ${{{found[1]}:...}} is no resolver that OmegaConf or Hydra has."
    if found := re.search(r"(\w+) raised while resolving interpolation: (.*)", text):
        return f"{key}: its ${{...}} does not resolve: {found[2]}"
    if found := re.search(r"field '([^']+)' is not Optional", text):
        return f"{found[1]}=null: must have a value."
    return None


def _known(hydra: "Hydra", config_name: str, overrides: Sequence[str] = ()) -> list[str]:
    """Every setting and group that there is, by its dotted name."""
    with suppress(HydraException, OmegaConfBaseException, yaml.YAMLError):
        config = hydra.compose_config(config_name, list(overrides), RunMode.RUN, from_shell=False)
        return [*_keys(OmegaConf.to_container(config)), *_groups(hydra)]
    return _known(hydra, config_name) if overrides else []


def _groups(hydra: "Hydra") -> list[str]:
    return hydra.config_loader.get_group_options("", ObjectType.GROUP)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            if key != "hydra":
                yield from _keys(value, f"{prefix}{key}.")
