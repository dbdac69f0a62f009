"""A run repeated from its record, into a new directory; and in words, what differs now.

    python launcher/rerun.py outputs/2026-01-31/12-00-00 dry_run=true    # only say it
    torchrun --nproc_per_node 2 launcher/rerun.py outputs/2026-01-31/12-00-00

Where nothing differs, weights and metrics.jsonl come out the same in every bit.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started as a file; launcher/__init__.py then puts the path in order
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from omegaconf import OmegaConf

from launcher import config, distributed, provenance, saved
from launcher.config import Composed
from launcher.run_directory import config_options
from launcher.watch import guarded


def main() -> None:
    """The console command: exit status as that of launcher/train.py."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line, say what differs, and train again."""
    asked = config.compose_tool("rerun", argv, config.RERUN_SCHEMA)
    if asked is None:
        return 0
    settings = asked.plain()
    path, run = saved.open_run(settings["run_dir"])
    new = new_settings(run)
    run = with_settings(run, new)
    composed = compose_again(path, run, settings["output"])
    ranks = distributed.join()
    if ranks.rank == 0:
        lines = [f"{key}: no such setting then, {value} now" for key, value in new.items()]
        lines += say_differences(path, run, ranks)
        for line in lines:
            print(f"differs    {line}")
        if not lines:
            print(f"same       code, packages, devices and data as {path} began with")
        sys.stdout.flush()
    if settings["dry_run"]:
        return 0
    from launcher.train import train

    # What a stopped run prints to go on with it: train.py with these words.
    script = Path(sys.argv[0])
    sys.argv = [str(script.with_name(script.name.replace("rerun", "train"))), *config_words(path), *composed.overrides]
    return train(composed)


def new_settings(run: dict[str, Any]) -> dict[str, Any]:
    """Settings that conf/train.yaml has by now and a run was made without, by their dotted names, at their defaults."""
    with config.opened(config.parse_arguments([]), "train") as (hydra, name):
        defaults = config.compose(hydra, name, []).plain()
    found = {key: value for key, value in defaults.items() if key not in run}
    for key in config.SCHEMA:
        group, _, leaf = key.partition(".")
        there, default = run.get(group), defaults.get(group)
        if not isinstance(there, dict) or not isinstance(default, dict):
            continue
        if "_target_" in there or (group == "strategy" and there["name"] != default["name"]):
            continue  # another option of its group has settings of its own
        if leaf in default and leaf not in there:
            found[key] = default[leaf]
    return found


def with_settings(run: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, and others by their names."""
    whole = dict(run)
    for key, value in new.items():
        group, _, leaf = key.partition(".")
        whole[group] = {**whole[group], leaf: value} if leaf else value
    return whole


def config_words(path: Path) -> list[str]:
    """Where a run had its config from, as options for here: for the command that goes on with its repetition."""
    record = provenance.read(path)
    words = config_options(shlex.split(record["command"]))
    for i, word in enumerate(words):
        name, given, value = word.partition("=")
        if name in ("--config-dir", "-cd") and given:
            words[i] = f"{name}={os.path.relpath(Path(record['directory'], value))}"
        elif name in ("--config-dir", "-cd") and i + 1 < len(words):
            words[i + 1] = os.path.relpath(Path(record["directory"], words[i + 1]))
    return words


def compose_again(path: Path, run: dict[str, Any], output: str | None) -> Composed:
    """The config of a run, for a directory of its own.

    Args:
        path: Run directory.
        run: Its settings.
        output: The new directory, resumed where a run is in it; None: as `beside` says.
    """
    settings = OmegaConf.create(run)
    if "wandb" in settings:
        settings.wandb.id = None  # the repetition is a run of its own
    OmegaConf.set_struct(settings, True)
    config.check_settings(run)
    hydra: Any = OmegaConf.load(path / ".hydra" / "hydra.yaml")
    hydra = hydra.hydra
    overrides: Any = OmegaConf.to_container(OmegaConf.load(path / ".hydra" / "overrides.yaml"))
    overrides = [word for word in overrides if not word.lstrip("+").startswith("hydra.run.dir=")]
    place = Path(output).expanduser() if output is not None else beside(path.resolve())
    hydra.run.dir = str(place)
    if output is not None:
        overrides.append(config.directory_override(place))
    return Composed(settings, hydra, overrides)


def beside(path: Path) -> Path:
    """Where a run goes that repeats the one in `path`: next to it, or to the grid that it is a point of."""
    for grid in path.parents:
        if (grid / "grid.json").is_file():
            return grid.with_name("-".join([grid.name, *path.relative_to(grid).parts, "rerun"]))
    return path.with_name(f"{path.name}-rerun")


def say_differences(path: Path, run: dict[str, Any], ranks: distributed.Ranks) -> list[str]:
    """What is not as it was when a run began, in words; for rank 0.

    Args:
        path: Run directory.
        run: Its settings.
        ranks: The processes there are now.

    Raises:
        ConfigError: The run has no record, or its data is not there.
    """
    import json

    import torch

    from launcher.components import build, locate
    from launcher.stream import seed_generators

    then = provenance.read(path)
    on_cpu = distributed.choose_device(run["device"], "no", ranks)  # what says the differences trains nothing
    torch.set_num_threads(distributed.choose_threads(run["threads"], ranks))
    seed_generators(run["seed"])
    data = json.loads(json.dumps(build("data", run["data"]).record(), default=str))
    for target in provenance.targets(run):
        locate(target, "run_dir")  # a person's own file is known once it is imported
    now = provenance.collect(run, ranks.world_size, torch.device("cpu" if on_cpu else f"cuda:{ranks.local_rank}"))
    return [*provenance.differences(then, now), *provenance.data_differences(provenance.read_data(path), data)]


if __name__ == "__main__":
    main()
