"""A sweep as its start handles it, on this machine or by SLURM: its directory, its lock, its trials, what it says."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config import composition
from launcher.config.migrations import stamped
from launcher.config.places import check_writable, make_directory
from launcher.config.tree import directory_override
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json, write_text
from launcher.core.locks import Locked, take_lock
from launcher.distributed.stop_request import StopRequest
from launcher.run.command_line import config_options, started_words
from launcher.sweep.options import LauncherOptions
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial, TrialComposer, refuse_mixing

LOCK = "grid.lock"
SUMMARY = {  # how a start calls the trials that it finds, in this order
    State.FINISHED: "finished before",
    State.QUEUED: "queued",
    State.RUNNING: "running",
    State.FAILED: "to try again",
    State.STOPPED: "to resume",
    State.INTERRUPTED: "to resume",
    State.NEW: "new",
}


class Sweep:
    """A sweep that is about to start, or to go on.

    Args:
        task: Composes a trial.
        master: The sweep's own config, as Hydra composed it.
        options: Of the launcher.

    Raises:
        ConfigError: An option is wrong, another start is in the directory, or it cannot be made.
    """

    def __init__(self, task: composition.Task, master: Any, options: LauncherOptions) -> None:
        options.check()
        self.task, self.master, self.options = task, master, options
        self.path = directory_of(master)  # not made before `begin`
        self.trials: list[Trial] = []  # those that have been composed
        self._composer = TrialComposer(task, master, options, self.path)
        self._base: dict[str, Any] = {}
        self._lock = lock(self.path) if (self.path / LOCK).exists() else None

    def compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[Trial]:
        """Compose and check the trials, one after the other; the number of the first is `first`.

        Raises:
            ConfigError: A trial is wrong, there are too many, or the sweep was begun with another config under them.
        """
        check_count(len(job_overrides), self.options.max_points)
        self._base = self._base_config()
        for trial in self._composer.compose(job_overrides, first):
            self.trials.append(trial)
            yield trial

    def _base_config(self) -> dict[str, Any]:
        """The config under the trials' overrides; empty where it is not complete without them."""
        try:
            composed = self.task.compose(self._composer.own, {"override_dirname": "base"})  # its directory is not made
        except ConfigError:
            return {}
        if before := read_json(self.path / "grid.json").get("base"):
            composed = composed.as_begun(before)
            refuse_mixing(self.path, before, json.loads(json.dumps(composed.plain())))
        return composed.plain()

    def begin(self) -> None:
        """Make the directory where it is not there, and lock it; a ConfigError where another start was first."""
        make_directory(self.path, "hydra.sweep.dir")
        self._lock = lock(self.path) if self._lock is None else self._lock

    def remember(self) -> None:
        """Write what the comparison and the next start need to know: the trials, and the config under them."""
        known, first = read_json(self.path / "grid.json"), self.trials[0]
        named = dict(known.get("points") or {}) | {self.name_of(trial): trial.overrides for trial in self.trials}
        content = {
            "command": self.command(first.world if first.kind != "slurm" else 1),
            "started": started_words(),
            "options": config_options(sys.argv[1:]),
            "devices_per_run": first.world,
            "base": known.get("base") or (stamped(self._base) if self._base else {}),
            "points": named,
        }
        write_json(self.path / "grid.json", content)
        write_text(self.path / "multirun.yaml", OmegaConf.to_yaml(self.master))

    def release(self) -> None:
        """Let other starts in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def name_of(self, trial: Trial) -> str:
        """The directory of a trial, within that of the sweep."""
        return str(trial.path.relative_to(self.path))

    def command(self, world: int = 1) -> str:
        """The command that goes on with this sweep of `world` processes a trial, without what launched it."""
        here = os.path.relpath(self.path)
        words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
        if world > 1 and not any(word.startswith("hydra.launcher.devices_per_run=") for word in words):
            words.append(f"hydra.launcher.devices_per_run={world}")
        named = directory_override(self.path if here.startswith("..") else here).replace("run.dir", "sweep.dir", 1)
        return shlex.join([*started_words(), *words, named])

    def print_counts(self) -> None:
        """Say how many trials there are to run, and how many are done."""
        words = [SUMMARY[trial.state] for trial in self.trials]
        counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(SUMMARY.values()) if word in words]
        print(f"sweep      {os.path.relpath(self.path)}: {', '.join(counts)}", flush=True)

    def take_stop_requests(self) -> StopRequest:
        """From now on Ctrl-C and the like are requests to stop, also for a sweeper that goes on in batches."""
        if self.task.stop is None:
            self.task.stop = StopRequest(None, 0)
        return self.task.stop

    def print_failures(self) -> None:
        """Say on standard error which trials failed, and why."""
        for trial in self.trials:
            if trial.state == State.FAILED:
                print(f"FAILED     trial {trial.index} ({trial.label}): {trial.reason}", file=sys.stderr, flush=True)


def directory_of(master: Any) -> Path:
    """The directory that a sweep's own config names; a ConfigError where it cannot be made."""
    if not (name := str(master.hydra.sweep.dir)):
        raise ConfigError("hydra.sweep.dir: names no directory; hydra.sweep.dir=. is the one that you are in.")
    path = Path(name).resolve()
    check_writable(path, "hydra.sweep.dir")
    return path


def check_count(count: int, most: int) -> None:
    """Refuse a sweep without a trial, and ask for consent where it has more than `most`."""
    if count == 0:
        raise ConfigError("The sweep has no trial: a list or range that is swept is empty.")
    if count > most:
        raise ConfigError(
            f"The sweep has {count:,} trials, more than hydra.launcher.max_points={most}. "
            f"If that is meant, add hydra.launcher.max_points={count}."
        )


def lock(path: Path) -> int:
    """Keep other starts of a sweep out of its directory for as long as the returned handle is open.

    Raises:
        ConfigError: Another one is in it.
    """
    try:
        return take_lock(path / LOCK, {"host": socket.gethostname(), "pid": os.getpid()})
    except Locked as error:
        raise ConfigError(
            f"hydra.sweep.dir={path}: a sweep runs in it ({error}). Stop it, or choose another."
        ) from error
