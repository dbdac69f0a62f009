"""Where the trials of a sweep come from that are not known before it starts."""

from collections.abc import Set
from typing import Protocol

from launcher.sweep.trials import Trial


class Feed(Protocol):
    """Trials one at a time, each chosen by what those before have shown: `Search` and `Decision`."""

    like: Trial  # one of them, which tells what devices each takes; set before anything starts
    varying: Set[str]  # settings that differ between them

    @property
    def over(self) -> bool:
        """Whether it has nothing to start, now or when what runs has ended."""

    @property
    def coming(self) -> int:
        """How many trials `next` would hand out now, one after the other, as far as is known."""

    @property
    def total(self) -> int:
        """Trials of this start, those that are done and those to come, as far as is known."""

    @property
    def compared_by(self) -> tuple[str | None, str | None]:
        """The metric that the comparison is by, and whether less or more of it is better; see `read_sweep`."""

    def check(self) -> Trial:
        """Compose trials that tell whether all can be; a ConfigError where not. Returns one of them."""

    def open(self) -> None:
        """Take up what an earlier start has left; the sweep's directory is there, and locked."""

    def waiting(self) -> list[Trial]:
        """What an earlier start has left to run, beside what `next` says."""

    def next(self) -> Trial | None:
        """The trial to start now; None where there is none, or none before another has ended."""

    def ended(self, trial: Trial) -> None:
        """Note that a trial has ended, however."""

    def close(self) -> None:
        """The sweep is over, or was asked to stop."""
