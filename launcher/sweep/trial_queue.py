"""The trials of a sweep that wait to be run, and what is noted of them, by whichever executor runs them."""

from collections.abc import Sequence
from typing import Any

from launcher.run.lock import is_held
from launcher.sweep import failure
from launcher.sweep.failure import FAILED
from launcher.sweep.feed import Feed
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial

RETRIES = 3  # starts again of a trial that ended by no fault of its own
WORDS = {State.NEW: "started", State.FAILED: "tried again", State.PRUNED: "promoted"}  # how a start is called


class TrialQueue:
    """What executors have in common, on this machine and on a cluster.

    Args:
        trials: To be run; those that are done are left out.
        display: Of the sweep.
        feed: What comes when no trial waits, one at a time.
    """

    def __init__(self, trials: Sequence[Trial], display: ProgressDisplay, feed: Feed | None) -> None:
        self.display, self.feed = display, feed
        self.queue = [trial for trial in trials if trial.state not in (State.FINISHED, State.PRUNED)]
        self._retried: dict[int, int] = {}  # by the trial's index

    def has_more(self) -> bool:
        """Whether there is anything to start, now or when what runs has ended."""
        return bool(self.queue) or (self.feed is not None and not self.feed.over)

    def is_ours(self, trial: Trial) -> bool:
        """Whether a trial may start: no run of another start is in its directory, or has finished it meanwhile."""
        if is_held(trial.path):  # left over from an executor that was killed, or started alone
            if trial.state != State.WAITING:
                trial.lifecycle.wait()
                self.display.say(trial, "waits for the run that is in its directory")
            return False
        if trial.state in (State.WAITING, State.INTERRUPTED):  # it may have ended since its files were read
            note = trial.lifecycle.end if trial.state == State.WAITING else trial.lifecycle.look
            note(trial.found())
            if trial.state == State.FINISHED:
                self.queue.remove(trial)
                self.display.say(trial, "finished, by another process")
                if self.feed is not None:
                    self.feed.ended(trial)
                return False
        return True

    def may_retry(self, trial: Trial) -> bool:
        """Whether a trial that ended by no fault of its own is started again; it is counted where it is."""
        if self._retried.get(trial.index, 0) >= RETRIES:
            return False
        self._retried[trial.index] = self._retried.get(trial.index, 0) + 1
        return True

    def prepare(self, trial: Trial) -> None:
        """Make the directory of a trial, without what tells how the attempt before has ended; an OSError may come."""
        trial.path.mkdir(parents=True, exist_ok=True)
        for stale in (FAILED, "stopped.json"):
            (trial.path / stale).unlink(missing_ok=True)

    def could_not_prepare(self, trial: Trial, error: OSError) -> None:
        """Note that a trial failed, whose directory cannot be written."""
        trial.lifecycle.fail(f"its directory cannot be written: {error.strerror}")
        self.note_end(trial, 0.0)

    def note_failure(self, run: Any, statuses: Sequence[int | None], seconds: float) -> None:
        """Note why an attempt at a trial failed, TrialProcesses or TrialOnRay, also in the directory of the trial."""
        trial: Trial = run.trial
        trial.lifecycle.fail(run.failure())
        more = {"first_rank": run.ended[0], "seconds": round(seconds, 3), "overrides": trial.overrides}
        try:
            failure.write(trial.path, trial.reason, statuses, run.printed, **more)
        except OSError as error:  # a full disk may be what it failed of; the others go on
            self.display.say(trial, f"{FAILED} cannot be written: {error.strerror}")

    def note_end(self, trial: Trial, seconds: float) -> None:
        """Tell the feed and a person that a trial has ended, however."""
        if self.feed is not None:
            self.feed.ended(trial)
        self.display.ended(trial, seconds)
