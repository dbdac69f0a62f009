"""Each rank watches the others, so that none waits for one that died, failed or hangs.

A rank writes a heartbeat into the store that torch.distributed met in, and reads the others'. A dead process is seen
by its neighbours on the same machine, which know its pid, and told to the rest. A collective alone would not do: NCCL
waits for minutes and then ends the process from a thread of its own, and gloo says "connection reset" without saying
by whom. The process group's own timeout is therefore much longer (process_group.py).
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.core.processes import exists, is_stopped
from launcher.distributed.collectives import from_rank_0
from launcher.distributed.pulse import BEAT, GAP, StallDetector, pulse
from launcher.distributed.ranks import Ranks
from launcher.distributed.rendezvous import by_rank_0, meet
from launcher.distributed.stop_request import leave, watch_launcher

log = logging.getLogger("launcher")

NEIGHBOURS = 4  # ranks that each one looks at; if it were all, rank 0 would serve the square of their number
PATIENCE = 5.0  # seconds in which the rank that failed first is given time to say so before an echo speaks
# What the exception of a rank looks like whose peer is gone
ECHOES = (
    "Connection reset", "Connection closed", "Broken pipe", "Socket", "gloo", "NCCL", "DistBackendError",
    "DistNetworkError", "Timed out",
)  # fmt: skip

current: "Watchdog | None" = None  # of this process, for who handles an exception at its very end


class Watchdog:
    """The watch of one rank over its peers: who sends no heartbeat or does not move for `timeout` seconds hangs."""

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        from torch.distributed import PrefixStore

        self.ranks, self.timeout = ranks, timeout
        self._launcher_is_gone = watch_launcher()
        meeting = meet(ranks, timeout)
        # A name of its own: torchrun's store outlives a restart, and holds what the group before it wrote. And a
        # connection of its own: a client answers one call at a time, and the main thread may wait in one.
        name = f"launcher/{from_rank_0(uuid.uuid4().hex, ranks.world_size)}"
        self._store: Any
        self._store = PrefixStore(name, meeting.store.clone())
        meeting.be_watched(name, self._launcher_is_gone)
        self._done = threading.Event()
        self._leaving = False
        self._host = socket.gethostname()
        self._store.append(f"host/{self._host}", f"{ranks.rank} {os.getpid()}\n")
        after = range(ranks.rank + 1, ranks.rank + 1 + min(NEIGHBOURS, ranks.world_size - 1))
        self._neighbours = [rank % ranks.world_size for rank in after]
        self._stall, self._count = StallDetector(), 0
        self._beats: dict[int, Any] = {}  # the last heartbeat of each neighbour, and since when it is that
        self._since: dict[int, float] = {}
        self._looked, self._waited = time.monotonic(), 0.0
        global current
        current = self
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Say that this rank is done: its process may end from the next barrier on, and nobody should wonder."""
        self._leaving = True
        self._set("leaving", True)

    def close(self) -> None:
        """Stop watching; every rank must have passed a barrier before."""
        self._done.set()
        self._thread.join(2 * BEAT)

    def failed(self, text: str) -> str | None:
        """Tell the others that this rank failed, and of what, unless another one did before.

        Returns:
            None where this rank is the first: it should say what happened. Else what to say in its place.
        """
        if self._done.is_set():
            return None  # the others have left
        if any(word in text for word in ECHOES):  # the watchdog knows, or will in a moment, who is behind it, and ends
            self._thread.join(PATIENCE)
        self._done.set()
        hung = "Timed out" in text
        try:
            if hung:  # all of them live: say where each stands, the one that does not come among them
                places = self._places(self._all_beats())
                others = [f"rank {rank} was {place}" for rank, place in places.items() if rank != self.ranks.rank]
                text = "\n".join([*others, text])
            self._store.compare_set("failure", "", json.dumps({"rank": self.ranks.rank, "text": text}))
            behind = self._who_failed()
        except Exception:  # the store went with rank 0
            return None
        self._linger()
        if behind is not None:
            return f"rank {self.ranks.rank} ends, because {behind}"
        return text if hung else None

    def _run(self) -> None:
        while not self._done.wait(BEAT):
            try:
                self._look()
            except Exception as error:  # the store is gone: with it rank 0, or the launcher that held it
                self._done.wait(0.5)
                if self._leaving or self._launcher_is_gone():
                    return  # rank 0 has left; or torchrun was killed and its store with it: the ranks stop, and save
                if not self._done.is_set():
                    self._end(f"rank {self.ranks.rank} ends: rank 0 or its launcher is gone ({type(error).__name__}).")

    def _look(self) -> None:
        """Tell the others of this rank, and end where one of them failed, hangs, is silent or gone."""
        still = self._stall.seconds_still()
        self._count += 1
        self._set("beat", [self._count, pulse.step or 0, pulse.place(), round(still), pulse.meets()])
        now = time.monotonic()
        if now - self._looked > GAP:  # the job was suspended: nobody could have moved
            self._since = dict.fromkeys(self._since, now)
        self._looked = now
        self._warn_of_waiting(now)
        for rank in self._neighbours:
            beat = self._get("beat", rank)
            if self._beats.get(rank, ()) != beat or rank not in self._since:
                self._beats[rank], self._since[rank] = beat, now
        if (behind := self._who_failed()) is not None:
            self._end(f"rank {self.ranks.rank} ends, because {behind}")
        # The first to find a reason tells it, and all end by that: a rank that is silent, being stopped, is soon gone.
        if reason := self._who_is_silent(now) or self._who_is_gone() or self._who_hangs(still):
            self._store.compare_set("reason", "", reason)
        if self._store.check(["reason"]):
            self._end(f"{self._store.get('reason').decode()} rank {self.ranks.rank} ends.")

    def _warn_of_waiting(self, now: float) -> None:
        """Say now and then that the main thread waits, which it may do as long as it likes."""
        self._waited = 0.0 if pulse.waiting is None else self._waited or now
        if self._waited and (seconds := now - self._waited) > self.timeout:
            log.warning("rank %d has been waiting for %s for %.0f s more", self.ranks.rank, pulse.waiting, seconds)
            self._waited = now

    def _who_failed(self) -> str | None:
        """The rank that failed first, where that is another one, and what it said last."""
        if not self._store.check(["failure"]):
            return None
        first = json.loads(self._store.get("failure"))
        return None if first["rank"] == self.ranks.rank else f"rank {first['rank']} {first['text'].splitlines()[-1]}"

    def _who_is_silent(self, now: float) -> str | None:
        """A neighbour without a heartbeat."""
        for rank in self._neighbours:
            if (silent := now - self._since[rank]) > self.timeout:
                step = (self._beats[rank] or [0, "?"])[1]
                return (
                    f"rank {rank} has been silent for {silent:.0f} s (timeout={self.timeout:g}), last seen at step "
                    f"{step}: it hangs, or its machine is gone."
                )
        return None

    def _who_is_gone(self) -> str | None:
        """A rank on this machine whose process is there no more."""
        for rank, pid in self._here().items():
            if rank != self.ranks.rank and not exists(pid) and not self._get("leaving", rank):
                return f"rank {rank} (pid {pid} on {self._host}) is gone: it was killed, or ran out of memory."
        return None

    def _who_hangs(self, seconds: float) -> str | None:
        """Where the main thread of every rank is, those first that do not wait for others, if this one is still.

        A rank without a heartbeat is noticed first, and is why.
        """
        if seconds <= self.timeout + 2 * BEAT:
            return None
        beats = self._all_beats()
        at = self._places(beats)
        hang = [rank for rank, beat in beats.items() if not beat[4] and beat[3] >= seconds / 2]
        others = [f"rank {rank} is {place}." for rank, place in at.items() if rank not in hang]
        still = f"has not moved for {seconds:.0f} s (timeout={self.timeout:g})"
        head = [f"rank {rank} hangs: it {still}, {at[rank]}." for rank in hang]
        return " ".join([*(head or [f"no rank of those that wait for each other {still}:"]), *others])

    def _here(self) -> dict[int, int]:
        """Pid of each rank on this machine."""
        lines = self._store.get(f"host/{self._host}").decode().splitlines()
        return {int(rank): int(pid) for rank, pid in (line.split() for line in lines)}

    def _all_beats(self) -> dict[int, Any]:
        """The last heartbeat of each rank that has told one."""
        beats = {rank: self._get("beat", rank) for rank in range(self.ranks.world_size)}
        return {rank: beat for rank, beat in beats.items() if beat}

    @staticmethod
    def _places(beats: Mapping[int, Any]) -> dict[int, str]:
        """Where the main thread of each rank was at its heartbeat."""
        return {rank: f"at step {beat[1]}, {beat[2]}" for rank, beat in beats.items()}

    def _set(self, what: str, value: Any) -> None:
        self._store.set(f"{what}/{self.ranks.rank}", json.dumps(value))

    def _get(self, what: str, rank: int) -> Any:
        key = f"{what}/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _linger(self) -> None:
        """The store may go with rank 0: let the others read first who is behind it all."""
        if self.ranks.rank == 0:
            time.sleep(1.5 * BEAT)

    def _end(self, message: str) -> None:
        if self._done.is_set():
            return
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
        # A child of the launcher that is stopped does not take SIGTERM; torchrun kills it, but only 30 s later.
        with contextlib.suppress(Exception):
            for pid in self._here().values():
                if is_stopped(pid):
                    os.kill(pid, signal.SIGKILL)
        self._linger()
        leave(1)


@contextlib.contextmanager
def watched(ranks: Ranks, timeout: float) -> Iterator[None]:
    """Watch the other ranks, and leave the group together with them after a run that went well; see Watchdog."""
    watchdog = Watchdog(ranks, timeout) if ranks.world_size > 1 else None
    yield
    finish(watchdog)


def finish(watchdog: Watchdog | None) -> None:
    """Leave the group together: from here on the peers may go. None in a group of one."""
    if watchdog is None:
        return
    import torch.distributed as dist

    by_rank_0("what it has left to write", lambda: None, watchdog.ranks)
    watchdog.leave()
    dist.barrier()
    watchdog.close()
    dist.destroy_process_group()
