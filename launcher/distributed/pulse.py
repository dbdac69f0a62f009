"""Whether the main thread of this process moves on: for its own watchdog, and for the executor of a sweep.

A heartbeat of another thread says nothing about the main thread, which may hang inside of a collective. Nor does the
time of a processor: a process that waits for its GPU spins. What counts is that an update, a batch or a line is left.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

BEAT = 1.0  # seconds between two looks
GAP = 5.0  # from which on it was this process that did not run: suspended by a cluster, or by Ctrl-Z
# Where a rank waits for the others: in torch's collectives, in a backward with its reductions, in a vote, for its GPU.
MEETINGS = ("torch/distributed/", "torch/autograd/graph.py", "launcher/training/reduction.py", "torch/cuda/")


class Pulse:
    """What the main thread of this process is doing."""

    def __init__(self) -> None:
        self.step: int | None = None  # updates done; None before training begins
        self.batches = 0  # micro-batches, and batches of evaluations, that were begun
        self.waiting: str | None = None  # for what, by right, however long that takes
        self.stopping: Callable[[], float] = lambda: 0.0  # seconds to stop when asked to, the save included

    @contextmanager
    def waits(self, what: str) -> Iterator[None]:
        """Waiting for something such as "the last checkpoint to be written" is no sign of a hang."""
        before, self.waiting = self.waiting, what
        try:
            yield
        finally:
            self.waiting = before

    def place(self) -> str:
        """The line that the main thread is in and, where that is a library's, the line that called it."""
        if self.waiting is not None:
            return f"waiting for {self.waiting}"
        frame = innermost = _main_frame()
        if frame is None or innermost is None:
            return "somewhere"
        while frame is not None and "site-packages" in frame.f_code.co_filename:
            frame = frame.f_back
        inside = _line(innermost)
        return inside if frame is None or frame is innermost else f"{inside}, called in {_line(frame)[3:]}"

    def meets(self) -> bool:
        """Whether the main thread is where ranks wait for each other."""
        frame = _main_frame()
        while frame is not None:
            if any(place in frame.f_code.co_filename for place in MEETINGS):
                return True
            frame = frame.f_back
        return False


class StallDetector:
    """How long the main thread has not moved, as far as somebody who looks now and then can tell."""

    def __init__(self) -> None:
        self._at: tuple[Any, ...] = ()
        self._since = self._looked = time.monotonic()

    def seconds_still(self) -> float:
        """Seconds for which the main thread has been seen at the same place; 0 while it waits by right."""
        now, at = time.monotonic(), (pulse.step, pulse.batches, pulse.place())
        if at != self._at or pulse.waiting is not None or now - self._looked > GAP:
            self._at, self._since = at, now
        self._looked = now
        return now - self._since


def share(figures: MutableSequence[float]) -> None:
    """Tell another process about the main thread of this one, in a thread, as long as this process lives.

    Args:
        figures: [3] in shared memory: moves seen so far; 1 from the first update on; seconds that a stop takes.
    """

    def tell() -> None:
        looks = StallDetector()
        while True:
            if looks.seconds_still() == 0:
                figures[0] += 1
            figures[1], figures[2] = float(pulse.step is not None), pulse.stopping()
            time.sleep(BEAT)

    threading.Thread(target=tell, name="pulse", daemon=True).start()


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


def _line(frame: FrameType) -> str:
    return f"in {frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno})"


pulse = Pulse()  # of this process
