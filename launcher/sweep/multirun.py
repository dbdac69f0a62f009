"""A sweep (-m) as Hydra runs it: its sweeper makes the trials, our launcher runs each in processes of its own."""

from collections.abc import Mapping
from typing import Any

import yaml
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException

from launcher.config import messages
from launcher.config.composed import Composed
from launcher.config.composition import compose
from launcher.config.hydra_api import Hydra
from launcher.config.tree import show_value
from launcher.core.errors import ConfigError


class Task:
    """What Hydra's launchers get for a task function: not the training itself, but how to compose a trial of the sweep.

    Attributes:
        failed: Trials that a launcher saw fail.
        stop: Its request to stop, which lasts over all that a sweeper hands it.
        swept: Settings that have several values in all of the sweep, of which a launcher may see one at a time.
    """

    def __init__(self, hydra: Hydra, config_name: str) -> None:
        self._hydra, self._config_name, self._said = hydra, config_name, False
        self.failed: list[str] = []
        self.stop: Any = None
        self.swept: frozenset[str] = frozenset()

    def compose(self, overrides: list[str], job: Mapping[str, Any]) -> Composed:
        """Compose and check a trial, of which Hydra says `job` in hydra.job."""
        trial = compose(self._hydra, self._config_name, overrides, trial=job)
        if trial.adopted and not self._said:
            self._said = True
            print(f"adopted    {' '.join(trial.adopted)}, as accelerate launch was asked to", flush=True)
        if trial.settings.get("check"):
            raise ConfigError(f"check={show_value(trial.settings.check)}: checks one run; leave out -m.")
        return trial


def sweep(hydra: Hydra, config_name: str, overrides: list[str]) -> int:
    """Run a sweep (-m): Hydra's sweeper makes the trials, its launcher runs each in processes of its own.

    Returns:
        0 where every trial went well, else 1.

    Raises:
        ConfigError: A setting is wrong, or the launcher is one that would train nothing.
    """
    task: Any = Task(hydra, config_name)
    overrides = [*overrides, "hydra.mode=MULTIRUN"]
    try:
        master = hydra.compose_config(config_name, overrides, RunMode.MULTIRUN, from_shell=False)
        target, option = str(master.hydra.launcher._target_), master.hydra.runtime.choices.get("hydra/launcher")
        if not _trains(target):
            why = "would train each trial in its own process, without devices and without going on"
            if target.startswith("hydra_plugins.launcher_jobs."):
                why = "is for Hydra applications of your own, which are no trainings"
            raise ConfigError(
                f"hydra/launcher={option} ({target}): {why}. Use hydra/launcher=local "
                "(hydra.launcher.max_parallel=1 for one trial at a time), or slurm"
                + ("." if f"hydra/launcher={option}" in overrides else
                   f"; the defaults of {config_name!r} do with `- override hydra/launcher: local`.")
            )  # fmt: skip
        hydra.multirun(config_name=config_name, overrides=overrides, task_function=task, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(messages.explain(hydra, config_name, overrides, error)) from error
    except RuntimeError as error:
        if "Invalid plugin" in str(error):
            raise ConfigError(f"hydra/sweeper: {error}.") from error
        if not task.failed:  # else a sweeper gave up because of a trial that failed, and the launcher said so
            raise
    return int(bool(task.failed))


def _trains(target: str) -> bool:
    """Whether a launcher is one of ours, which take what `Task` composes."""
    from hydra_plugins.launcher_sweeps import LocalLauncher

    try:
        found = get_object(target)
    except Exception:  # whatever the import of a person's own raises
        return False
    return isinstance(found, type) and issubclass(found, LocalLauncher)
