"""The jobs of any Hydra application as trials of a sweep: what Hydra hands a launcher, and what it is given back."""

import os
import pickle
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from launcher.config.places import check_length
from launcher.config.tree import UNSTATED, directory_override, leaves, show_value
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.distributed.stop_request import StopRequest
from launcher.sweep import failure
from launcher.sweep.hydra_job import JOB, RAISED, RETURNED, failed, program_config, read_return, state_of_job
from launcher.sweep.options import LauncherOptions
from launcher.sweep.sweep_directory import SweepDirectory
from launcher.sweep.trial_state import State, TrialState
from launcher.sweep.trials import Program, Trial

PRELOAD = "launcher.sweep.preload_program"


class Submitted(JobReturn):
    """Of a job that nobody waits for: sweepers that ask for its value get None, where Hydra's own would raise."""

    @property
    def return_value(self) -> Any:
        """None, as long as it is not known."""
        return None

    @return_value.setter
    def return_value(self, value: Any) -> None:
        raise AttributeError("nobody waits for what this job returns")


@dataclass
class Application:
    """A Hydra application, as Hydra hands it to a launcher."""

    context: HydraContext
    function: TaskFunction
    config: DictConfig  # of the sweep

    def packed(self) -> bytes:
        """What every job needs of it; a ConfigError where that cannot be sent to another process."""
        try:
            return cloudpickle.dumps((self.function, self.context, Singleton.get_state()))
        except Exception as error:
            raise ConfigError(
                f"The function under @hydra.main cannot be sent to the processes of its jobs ({type(error).__name__}: "
                f"{error}). What it uses of its module has to be what pickle takes, or made inside of it."
            ) from error


class HydraSweep(SweepDirectory):
    """A sweep of any Hydra application that is about to start, or to go on.

    Args:
        application: What is run.
        options: Of its launcher.
        resume: Leave jobs alone that have finished before, by what is in their directories.

    Raises:
        ConfigError: Another start is in the directory of the sweep, or it cannot be made.
    """

    def __init__(self, application: Application, options: LauncherOptions, resume: bool) -> None:
        options.check()
        self.application, self.resume = application, resume
        self.stop: StopRequest | None = None
        super().__init__(str(application.config.hydra.sweep.dir), options)

    def compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[Trial]:
        """Compose the jobs, one after the other; the number of the first is `first`.

        Raises:
            ConfigError: Two would have the same directory, or one was begun there with another config.
        """
        application = self.application
        program = Program(
            "launcher.sweep.hydra_job.run", PRELOAD, state_of_job, shared=(application.packed(),), one_process=True
        )
        numbers: dict[Path, int] = {}
        for number, overrides in enumerate(job_overrides, first):
            loader = application.context.config_loader
            config = loader.load_sweep_config(application.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = f"{config.hydra.job.name}_{number}"
                config.hydra.job.num = number
            path = _directory(config)
            if (twin := numbers.get(path)) is not None:
                raise ConfigError(
                    f"hydra.sweep.subdir={config.hydra.sweep.subdir}: is the directory of job {twin} and of job "
                    f"{number}. Let it name what varies, as ${{hydra.job.num}} and ${{hydra.job.override_dirname}} do."
                )
            numbers[path] = number
            if self.resume:
                _refuse_other(path, number, config)
            self.trials.append(trial := self._trial(number, list(overrides), config, path, program))
            yield trial

    def _trial(self, number: int, overrides: list[str], config: DictConfig, path: Path, program: Program) -> Trial:
        kind, threads = self.options.place(config)
        return Trial(
            index=number,
            overrides=overrides,
            label=" ".join(filter_overrides(overrides)) or "defaults",
            path=path,
            world=self.options.world,
            kind=kind,
            threads=int(threads),
            timeout=float("inf"),
            metric=None,
            epochs=0,
            packed=pickle.dumps((cloudpickle.dumps(config), str(path))),
            lifecycle=TrialState(state_of_job(path) if self.resume else State.NEW),
            program=program,
        )

    def begin(self) -> None:
        """Make and lock the directory; jobs that are to run again are as if they had never run."""
        super().begin()
        if not self.resume:
            for trial in self.trials:
                for name in (RETURNED, RAISED, JOB, failure.FAILED):
                    (trial.path / name).unlink(missing_ok=True)

    def command(self) -> str:
        """The command that goes on with this sweep."""
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        start = ["-m", spec.name.removesuffix(".__main__")] if spec is not None else [sys.argv[0]]
        words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
        place = os.path.relpath(self.path)
        named = directory_override(str(self.path) if place.startswith("..") else place)
        return shlex.join(["python", *start, *words, named.replace("run.dir", "sweep.dir", 1)])

    def take_stop_requests(self) -> StopRequest:
        """See SweepDirectory; as long as `stopping` lasts."""
        assert self.stop is not None, "within `stopping`"
        return self.stop

    @contextmanager
    def stopping(self) -> Iterator[StopRequest]:
        """Take requests to stop for a while; where one came, the process ends as if by its signal.

        Raises:
            SystemExit: It was asked to stop.
        """
        self.stop = StopRequest(None)
        try:
            yield self.stop
        finally:
            self.stop.close()
            self.release()
        if reason := self.stop.reason:
            number = getattr(signal, reason, None)
            raise SystemExit(128 + number if isinstance(number, signal.Signals) else 1)

    def returned(self) -> list[JobReturn]:
        """What Hydra's sweepers get to know of each job."""
        return [self._returned(trial) for trial in self.trials]

    def _returned(self, trial: Trial) -> JobReturn:
        if trial.state in (State.QUEUED, State.RUNNING):
            return Submitted(overrides=trial.overrides, status=JobStatus.UNKNOWN)
        if trial.state == State.FINISHED and (found := read_return(trial.path / RETURNED)) is not None:
            return found
        if trial.state == State.FAILED and (found := read_return(trial.path / RAISED)) is not None:
            return found
        reason = trial.reason or f"{trial.state}: its process ended before the function had returned"
        if trial.state == State.FINISHED:
            reason = f"{trial.path / RETURNED} cannot be read by the modules that are there now"
        return failed(trial.overrides, RuntimeError(f"job {trial.index} ({trial.label}): {reason}"))


def _directory(config: DictConfig) -> Path:
    """Where Hydra's run_job lets a job be."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)  # for ${hydra:...}
    try:
        path = Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()
    finally:
        HydraConfig.instance().cfg = before
    check_length(path, "hydra.sweep.subdir")
    return path


def _refuse_other(path: Path, number: int, config: DictConfig) -> None:
    """Refuse to go on with a job in a directory where one with another config was begun."""
    kept = read_json(path / JOB).get("config")
    if kept is None or kept == (now := program_config(config)):
        return
    old, new = leaves(yaml.safe_load(kept) or {}), leaves(yaml.safe_load(now) or {})
    lines = [
        f"{key}: {show_value(old.get(key, UNSTATED))} -> {show_value(new.get(key, UNSTATED))}"
        for key in sorted({*old, *new})
        if old.get(key, UNSTATED) != new.get(key, UNSTATED)
    ]
    raise ConfigError(
        f"hydra.sweep.dir: job {number} was begun in {path} with another config:\n  "
        + "\n  ".join(lines)
        + "\nUse the settings that it was begun with, another hydra.sweep.dir, or hydra.launcher.resume=false to run "
        "all jobs anew."
    )
