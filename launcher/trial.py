"""One trial of a sweep, composed and checked when the sweep was: `python launcher/trial.py --task FILE`, in each rank.

Batch scripts of `hydra/launcher=slurm` call this. What the file holds is trained, whatever conf/ says by then, by the
code of the snapshot that was made with it.
"""

import os
import sys

if __name__ == "__main__" and not __package__:  # started as a file; launcher/__init__.py then puts the path in order
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

# isort: off
import launcher  # before `main` moves what is on the path, to which this adds

# isort: on
import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def moved(place: str, trees: Mapping[str, str]) -> str:
    """A place inside of one of the trees (original to copy), in its copy where that has it; else as it is."""
    real = os.path.realpath(place)
    for tree, copy in trees.items():
        if os.path.commonpath([real, tree]) == tree:
            within = os.path.normpath(os.path.join(copy, os.path.relpath(real, tree)))
            return within if os.path.exists(within) else place  # a virtual environment has not been copied
    return place


def train_composed(settings: Any, hydra: Any, overrides: list[str]) -> int:
    """Train what was composed before: checked settings as plain values, and Hydra's node, or its values, or as YAML."""
    from omegaconf import OmegaConf

    from launcher import train
    from launcher.config.composed import Composed, hydra_node
    from launcher.distributed.exit_status import guarded

    composed = Composed(OmegaConf.create(settings), hydra_node(OmegaConf.create(hydra)), overrides)
    OmegaConf.set_struct(composed.settings, True)
    return guarded(lambda: train.train(composed))


def run_program(task: Mapping[str, Any]) -> int:
    """Run a trial of another program than the training, as sweep/trial_processes.py does; returns its exit status."""
    sys.path += [place for place in task["path"] if place not in sys.path]
    sys.argv = task["started"]
    module, _, name = task["entry"].rpartition(".")
    entry = getattr(importlib.import_module(module), name)
    arguments = (pickle.loads(Path(task[which]).read_bytes()) for which in ("shared", "packed"))
    status: int = entry(*next(arguments), *next(arguments))
    return status


def main() -> None:
    """Train the trial of a file that slurm/job_array.py or check.py wrote; exit status as that of launcher/train.py."""
    task = json.loads(Path(sys.argv[sys.argv.index("--task") + 1]).read_text(encoding="utf-8"))
    if "entry" in task:
        sys.exit(run_program(task))
    # The working directory stays: data and relative paths are found there. Only code comes from the snapshot, also
    # for processes started from here.
    trees = task.get("trees", {})
    sys.path[:] = [moved(place, trees) for place in sys.path]
    if "PYTHONPATH" in os.environ:
        places = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(moved(place, trees) for place in places)
    if task.get("commit"):
        os.environ["LAUNCHER_COMMIT"] = task["commit"]  # that of the working directory may be another by now
    launcher.command = task.get("command")
    sys.argv = task.get("started", sys.argv)  # for the command that goes on with this run alone
    sys.exit(train_composed(task["settings"], task["hydra"], task["overrides"]))


if __name__ == "__main__":
    main()
