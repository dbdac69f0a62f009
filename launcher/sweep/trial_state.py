"""Where a trial of a sweep stands, and the ways in which that changes."""

from collections.abc import Set
from enum import StrEnum


class State(StrEnum):
    """Where a trial stands."""

    NEW = "new"  # nothing is there of it
    INTERRUPTED = "interrupted"  # it began, and nothing tells how it ended
    STOPPED = "stopped"  # on request, with all saved
    PRUNED = "pruned"  # ended early by a search, with all saved: it goes on where it is promoted
    FAILED = "failed"
    FINISHED = "finished"
    WAITING = "waiting"  # for a run of another start that is in its directory
    QUEUED = "queued"  # in the queue of SLURM
    RUNNING = "running"


AT_REST = frozenset(
    {State.NEW, State.INTERRUPTED, State.STOPPED, State.PRUNED, State.FAILED, State.FINISHED}
)  # as files tell
TO_DO = AT_REST - {State.FINISHED}


class IllegalTransitionError(RuntimeError):
    """A trial was asked to go where nothing leads from where it stands."""


class TrialState:
    """The state of one trial: it changes by the transitions below, and by nothing else.

    It begins with what the files of the run directory tell, one of AT_REST.
    """

    def __init__(self, found: State) -> None:
        self.current = found
        self.reason = ""  # why it failed; empty in every other state
        self._go("be found", AT_REST, found)

    def look(self, found: State) -> None:
        """Its files, looked at again, tell `found`: it may have ended since."""
        self._go("be found", AT_REST, found)

    def wait(self) -> None:
        """Another process is in its run directory."""
        self._go("wait", TO_DO, State.WAITING)

    def queue(self) -> None:
        """SLURM has it in its queue: just submitted, or put back after a preemption."""
        self._go("queue", TO_DO | {State.RUNNING}, State.QUEUED)

    def start(self) -> None:
        """Its processes are started."""
        self._go("start", TO_DO | {State.QUEUED}, State.RUNNING)

    def end(self, found: State) -> None:
        """Its processes, or its job, are gone, and `found` is what the files of its run directory tell."""
        if found not in AT_REST:
            raise IllegalTransitionError(f"a trial cannot end as {found}")
        self._go("end", {State.WAITING, State.QUEUED, State.RUNNING}, found)

    def fail(self, reason: str) -> None:
        """It failed, or could not be started."""
        self._go("fail", frozenset(State) - {State.FINISHED}, State.FAILED)
        self.reason = reason

    def _go(self, name: str, sources: Set[State], target: State) -> None:
        if self.current not in sources:
            raise IllegalTransitionError(f"a trial that is {self.current} cannot {name}")
        self.current, self.reason = target, ""
