"""Votes to stop, which come with the gradients: how many updates later each is read, and how long an update takes."""

import time
from collections import deque

import torch
from torch import Tensor

MOST = {"cuda": 8}  # updates that a vote waits at most, by device: by then its copy to the host has long arrived
PATIENCE = 0.25  # seconds of updates that may pass meanwhile: a run that is asked to stop has little time
REMEMBERED = 5  # times between two updates whose median counts: an evaluation or a save is no slow update


class Votes:
    """The votes of all ranks, each read after as many updates on every rank.

    To read a vote at once would wait for the device in each update. The number of updates that it waits comes from the
    time that one takes, which rides along with the vote: every rank knows the same mean of all, and so the same number.

    Args:
        most: Updates that a vote waits at most; 0 where what the device holds can be read at once.
        pinned: Whether a vote is copied to page-locked memory meanwhile, by the device's own stream.

    Attributes:
        lag: Updates that a vote waits now; 0 until the first times are known.
        seconds: From the last update's beginning to this one's, on this rank; 0.0 before the second.
    """

    def __init__(self, most: int, pinned: bool) -> None:
        self.most, self.pinned = most, pinned
        self.lag = 0
        self.seconds = 0.0
        self._begun: float | None = None
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def begin(self) -> None:
        """Begin an update."""
        now = time.perf_counter()
        self.seconds = 0.0 if self._begun is None else now - self._begun
        self._begun = now

    @property
    def update_seconds(self) -> float:
        """Seconds that an update takes: the median of the last ones, of all ranks where they vote; 0.0 at first."""
        times = sorted(self._times)  # once: another thread may ask while this one appends
        return times[len(times) // 2] if times else 0.0

    @property
    def stopping_seconds(self) -> float:
        """Seconds from a request to stop until every rank has read it, and ended the update that it is in."""
        return (self.lag + 1) * self.update_seconds

    def note(self, seconds: float) -> None:
        """Take the time between two updates into account: that of this rank where it is alone."""
        if seconds > 0:
            self._times.append(seconds)
            if self.most:
                self.lag = min(self.most, int(PATIENCE / self.update_seconds))

    def add(self, mean: Tensor) -> bool:
        """Read what is old enough.

        Args:
            mean: [2] means over the ranks, on the device: of their votes, and of the seconds that `begin` gave.

        Returns:
            Whether a rank has asked to stop: after the same update on every rank.
        """
        if not self.most:
            vote, seconds = mean.tolist()
            self.note(seconds)
            return bool(vote > 0)
        arrived = None
        slot = torch.empty(2, pin_memory=self.pinned)
        slot.copy_(mean, non_blocking=True)
        if self.pinned:
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((slot, arrived))
        stop = False
        while len(self._waiting) > self.lag:
            slot, arrived = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            vote, seconds = slot.tolist()
            stop = stop or vote > 0
            self.note(seconds)  # which may let fewer of them wait
        return stop
