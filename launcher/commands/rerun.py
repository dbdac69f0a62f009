"""A run repeated from its record, into a new directory; and in words, what differs now.

    launcher rerun outputs/2026-01-31/12-00-00 dry_run=true    # only say it
    torchrun --nproc_per_node 2 -m launcher rerun outputs/2026-01-31/12-00-00

Where nothing differs, weights and metrics.jsonl come out the same in every bit.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import launcher
from launcher.config import composition, trust
from launcher.config.checks import check_settings, filled
from launcher.config.composed import Composed, hydra_node, node_of
from launcher.config.places import check_length
from launcher.config.tree import directory_override, leaves
from launcher.core.errors import ConfigError
from launcher.distributed.devices import choose_device, gpu_of
from launcher.distributed.ranks import Ranks, join
from launcher.distributed.threads import choose_threads
from launcher.run import provenance, saved
from launcher.run.command_line import config_options
from launcher.run.config_file import read_config
from launcher.run.pruning import SWEEP


def command(argv: list[str]) -> int:
    """Read a command line, say what differs, and train again."""
    asked = composition.compose_tool("rerun", argv)
    if asked is None:
        return 0
    settings = asked.plain()
    path, run = saved.open_run(settings["run_dir"])
    composed = compose_again(path, settings["output"])
    then, now = (leaves(one) for one in (read_config(path, "run_dir"), composed.plain()))
    ranks = join()
    if ranks.rank == 0:
        lines = [f"{key}: no such setting then, {value} now" for key, value in now.items() if key not in then]
        lines += say_differences(path, run, ranks)
        for line in lines:
            print(f"differs    {line}")
        if not lines:
            print(f"same       code, packages, devices and data as {path} began with")
        sys.stdout.flush()
    if settings["dry_run"]:
        return 0
    from launcher.train import train

    # What a stopped run prints to go on with it: `launcher train` with these words.
    launcher.command = "train"
    sys.argv[1:] = [*config_words(path), *composed.overrides]
    return train(composed)


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


def compose_again(path: Path, output: str | None) -> Composed:
    """The config of a run, for a directory of its own; settings that it was made without have their neutral values.

    Raises:
        ConfigError: A setting is wrong by now, or what Hydra wrote of the run cannot be read.
    """
    run = filled(read_config(path, "run_dir"))
    run["wandb"]["id"] = None  # the repetition is a run of its own
    check_settings(run)
    try:
        node: Any = OmegaConf.load(path / ".hydra" / "hydra.yaml")
        hydra = hydra_node(node.hydra)
        overrides: Any = OmegaConf.to_container(OmegaConf.load(path / ".hydra" / "overrides.yaml"))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"run_dir={path}: what Hydra wrote in .hydra cannot be read ({what}).") from error
    if trust.is_foreign(path):
        hydra.job.env_set = {}
    overrides = [word for word in overrides if not word.lstrip("+").startswith("hydra.run.dir=")]
    place = Path(output).expanduser() if output is not None else beside(path.resolve())
    check_length(place, "output")
    hydra.run.dir = str(place)
    if output is not None:
        overrides.append(directory_override(place))
    return Composed(node_of(run), hydra, overrides)


def beside(path: Path) -> Path:
    """Where a run goes that repeats the one in `path`: next to it, or to the sweep that it is a trial of."""
    for sweep in path.parents:
        if (sweep / SWEEP).is_file():
            return sweep.with_name("-".join([sweep.name, *path.relative_to(sweep).parts, "rerun"]))
    return path.with_name(f"{path.name}-rerun")


def say_differences(path: Path, run: dict[str, Any], ranks: Ranks) -> list[str]:
    """What is not as it was when a run began, in words; for rank 0.

    Raises:
        ConfigError: The run has no record, or its data is not there.
    """
    import torch

    from launcher.batching.generators import seed_generators
    from launcher.config.components import build, locate

    then, record = provenance.read(path), saved.read_record(path, run)
    on_cpu = choose_device(run | {"mixed_precision": "no"}, ranks)  # what says the differences trains nothing
    torch.set_num_threads(choose_threads(run["threads"], ranks))
    seed_generators(run["seed"])
    data = provenance.record_of(build("data", run["data"]))
    for key, target in trust.targets(run):
        locate(target, key)  # a person's own file is known once it is imported
    device = torch.device("cpu" if on_cpu else f"cuda:{gpu_of(ranks, torch.cuda.device_count())}")
    now = provenance.collect(run, ranks.world_size, device)
    return [*provenance.differences(then, now), *provenance.data_differences(record, data)]
