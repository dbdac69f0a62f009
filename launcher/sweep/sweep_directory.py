"""The directory of a sweep, of trainings or of any program: its lock, its trials, and what is said of them."""

import os
import socket
import sys
from pathlib import Path

from launcher.config.places import check_writable, make_directory
from launcher.core.errors import ConfigError
from launcher.core.locks import Locked, take_lock
from launcher.distributed.stop_request import StopRequest
from launcher.sweep.options import LauncherOptions
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial

LOCK = "grid.lock"
SUMMARY = {  # how a start calls the trials that it finds, in this order
    State.FINISHED: "finished before",
    State.QUEUED: "queued",
    State.RUNNING: "running",
    State.FAILED: "to try again",
    State.STOPPED: "to resume",
    State.PRUNED: "pruned before",
    State.INTERRUPTED: "to resume",
    State.NEW: "new",
}


class SweepDirectory:
    """A sweep that is about to start, or to go on, in a directory.

    Raises:
        ConfigError: Another start is in it, or it cannot be made.
    """

    def __init__(self, name: str, options: LauncherOptions) -> None:
        if not name:
            raise ConfigError("hydra.sweep.dir: names no directory; hydra.sweep.dir=. is the one that you are in.")
        self.path = Path(name).resolve()  # not made before `begin`
        check_writable(self.path, "hydra.sweep.dir")
        self.options = options
        self.trials: list[Trial] = []  # those that have been composed
        self._lock = lock(self.path) if (self.path / LOCK).exists() else None

    def begin(self) -> None:
        """Make the directory where it is not there, and lock it; a ConfigError where another start was first."""
        make_directory(self.path, "hydra.sweep.dir")
        self._lock = lock(self.path) if self._lock is None else self._lock

    def remember(self) -> None:
        """Write what the next start needs to know, where that is not in the directories of the trials."""

    def release(self) -> None:
        """Let other starts in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def name_of(self, trial: Trial) -> str:
        """The directory of a trial, within that of the sweep."""
        return os.path.relpath(trial.path, self.path)

    def command(self) -> str:
        """The command that goes on with this sweep."""
        raise NotImplementedError

    def take_stop_requests(self) -> StopRequest:
        """From now on Ctrl-C and the like are requests to stop."""
        raise NotImplementedError

    def print_counts(self) -> None:
        """Say how many trials there are to run, and how many are done."""
        words = [SUMMARY[trial.state] for trial in self.trials]
        counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(SUMMARY.values()) if word in words]
        print(f"sweep      {os.path.relpath(self.path)}: {', '.join(counts)}", flush=True)

    def print_failures(self) -> None:
        """Say on standard error which trials failed, and why."""
        for trial in self.trials:
            if trial.state == State.FAILED:
                print(f"FAILED     trial {trial.index} ({trial.label}): {trial.reason}", file=sys.stderr, flush=True)


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
