"""What a trial needs that starts in a process of its own, elsewhere and later: the file for launcher/trial.py."""

import pickle
import sys
from pathlib import Path

from omegaconf import OmegaConf

import launcher
from launcher.core.files import write_json
from launcher.run.command_line import config_options
from launcher.slurm.snapshot import Snapshot
from launcher.sweep.trials import Trial


def write_task(file: Path, trial: Trial, code: Snapshot) -> None:
    """Write what a trial trains, composed and checked, and by which copy of the code."""
    settings, hydra, overrides = pickle.loads(trial.packed)
    content = {
        "run_dir": str(trial.path),
        "overrides": overrides,
        "settings": OmegaConf.to_yaml(OmegaConf.create(settings)),
        "hydra": OmegaConf.to_yaml(OmegaConf.create(hydra)),
        "command": launcher.command,
        "started": [sys.argv[0], *config_options(sys.argv[1:])],
        "trees": code.trees,
        "commit": code.commit if code.trees else None,
    }
    write_json(file, content)


def write_job(directory: Path, number: int, trial: Trial) -> None:
    """Write down what the task of an array needs to run a trial of any program; see `run_program` in trial.py."""
    shared, own = directory / "shared.pkl", directory / f"{number}.pkl"
    if not shared.exists():
        shared.write_bytes(pickle.dumps(trial.program.shared))
    own.write_bytes(trial.packed)
    files = {"shared": str(shared), "packed": str(own)}
    words = {"entry": trial.program.entry, "path": sys.path, "started": sys.argv}
    write_json(directory / f"{number}.json", {"run_dir": str(trial.path), **files, **words})
