"""What rides on the reduction of the gradient: the sum of loss weights, and votes to stop."""

import time
from collections import deque

import torch
from torch import Tensor, nn

from launcher.distributed.collectives import sum_over_ranks

MOST = {"cuda": 8}  # updates that a vote waits at most, by device: by then its copy to the host has long arrived
PATIENCE = 0.25  # seconds of updates that may pass meanwhile: a run that is asked to stop has little time
REMEMBERED = 5  # times between two updates whose median counts: an evaluation or a save is no slow update


class Reduction:
    """What each rank says with the gradient of an update, and what all of them have said.

    A rank gives its sum of loss weights, its vote to stop and the seconds since its last update as the gradient of the
    parameter `carried`. Every rank gets the mean of the same update back, without a collective of their own.

    To read a vote at once would wait for the device in each update. The number of updates that it waits comes from the
    time that one takes, of which every rank knows the same mean, and so the same number. It is `most` at most, by
    default that of MOST: 0 where what the device holds can be read at once.
    """

    def __init__(self, world_size: int, device: torch.device, most: int | None = None) -> None:
        self.world_size, self.device = world_size, device
        self.most = MOST.get(device.type, 0) if most is None else most
        self.pinned = device.type == "cuda" and self.most > 0  # copied to page-locked memory, by the device's stream
        self.wants_to_stop = False  # set by who was asked to stop; goes into the next vote
        self.rounded = False  # the gradient travels in half precision, in which the sum of weights is not exact
        self.carried: nn.Parameter | None = None  # whose gradient travels; None where there is no other rank to tell
        self.received: Tensor | None = None  # [3] means over the ranks, of the last update; None where nothing travels
        self.votes: Tensor | None = None  # [2] of votes and seconds alone, where the trainer has gathered them itself
        self.lag = 0  # updates that a vote waits now; 0 until the first times are known
        self.seconds = 0.0  # from the last update's beginning to this one's, on this rank; 0.0 before the second
        self._begun: float | None = None
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._plain_payload = torch.zeros(3, device=device)
        self._plain_seconds = self._plain_payload[2]

    def begin(self) -> None:
        """Begin an update."""
        now = time.perf_counter()
        self.seconds = 0.0 if self._begun is None else now - self._begun
        self._begun = now

    def payload(self, weight_sums: list[Tensor]) -> Tensor:
        """[3] float32: what this rank says, given the loss weights of each micro-batch; empty for a loss without."""
        if not weight_sums and not self.wants_to_stop:
            self._plain_seconds.fill_(self.seconds)
            return self._plain_payload
        weight = torch.stack(weight_sums).sum() if weight_sums else torch.zeros((), device=self.device)
        own = (torch.full_like(weight, float(n), dtype=torch.float32) for n in (self.wants_to_stop, self.seconds))
        return torch.stack([weight.float(), *own])

    def total_weight(self, own: Tensor) -> Tensor:
        """The sum of loss weights over all ranks, given that of this rank."""
        if self.rounded:
            return sum_over_ranks([own], self.world_size)[0]
        return own if self.received is None else self.received[0] * self.world_size

    def stops(self) -> bool:
        """Whether some rank asked to stop, read so that every rank reads the vote of the same update."""
        votes = self.votes if self.received is None else self.received[1:]
        if votes is None:
            self.note(self.seconds)
            return self.wants_to_stop
        return self.read(votes)

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

    def read(self, votes: Tensor) -> bool:
        """Keep new votes, and read those that are old enough: whether a rank has asked to stop.

        Args:
            votes: [2] means over the ranks, on the device: of their votes, and of the seconds between two updates.
        """
        if not self.most:
            vote, seconds = votes.tolist()
            self.note(seconds)
            return bool(vote > 0)
        arrived = None
        slot = torch.empty(2, pin_memory=self.pinned)
        slot.copy_(votes, non_blocking=True)
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
