"""The store in which the ranks of a run meet, and by which rank 0 tells the others what it alone finds or does."""

import contextlib
import os
import pickle
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from launcher.core.errors import ConfigError, Explained
from launcher.distributed.collectives import from_rank_0
from launcher.distributed.pulse import BEAT, pulse
from launcher.distributed.ranks import Ranks

T = TypeVar("T")
Said = tuple[Exception | None, Any]  # what went wrong on rank 0, and what it made

WAIT = 30.0  # seconds that one question to the store lasts while rank 0 takes its time


class Rendezvous:
    """The main thread's own connection to the store in which the ranks meet; see `by_rank_0` and `judged_by_rank_0`.

    For other ranks it waits `timeout` seconds as long as nobody watches whether they live.
    """

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        import torch.distributed as dist

        self.ranks, self.timeout = ranks, timeout
        self._watched = False
        self._launcher_is_gone: Callable[[], bool] = lambda: False
        self._serves = ranks.rank == 0 and not agent_serves_store()
        wait_for_rank_0(ranks)
        address, wait = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=timeout)
        # With multi_tenant the process group, which is made later at the same address, finds this store and shares it.
        self.store: Any = dist.TCPStore(
            *address, ranks.world_size, self._serves, wait, wait_for_workers=False, multi_tenant=True
        )
        self._own = own_part("told", self.store)
        self._told = self._to_hear = 0  # how often rank 0 has told something, and has to be heard before it may end
        self._is_gone = False

    def be_watched(self, name: str, launcher_is_gone: Callable[[], bool]) -> None:
        """Wait for rank 0 as long as it lives: from here on a watchdog ends this process where it does not.

        Args:
            name: Of this process group alone: torchrun's store holds what the group before it was told.
            launcher_is_gone: Tells whether the launcher has ended, and with it a store that it held.
        """
        from torch.distributed import PrefixStore

        self._watched, self._launcher_is_gone = True, launcher_is_gone
        self._own, self._to_hear = PrefixStore(name, self.store), 0  # all have heard what was told before they met

    def by_rank_0(self, what: str, make: Callable[[], T]) -> T:
        """See the function of this name."""
        self._told += 1
        key = f"told {self._told}"
        waited = f"rank 0, and that for {what}" if self.ranks.rank else what
        self._to_hear += 0 if self._watched else self.ranks.world_size - 1
        with pulse.waits(waited) if self._watched else contextlib.nullcontext():
            problem, made = self._tell(key) if self.ranks.rank else self._make(key, make)
        if self.ranks.rank and not self._watched:
            self._own.add("heard", 1)
        if problem is not None:
            raise problem
        return made

    def _make(self, key: str, make: Callable[[], Any]) -> Said:
        """What rank 0 has to say, once it has said it."""
        said: Said = Explained("rank 0 was stopped"), None
        try:
            said = None, make()
        except ConfigError as error:  # of the user's, so of every rank
            said = ConfigError(str(error)), None
        except Exception as error:
            said = Explained(f"rank 0 failed: {error}"), None
            raise
        finally:
            if not self._watched or not isinstance(said[0], Explained):  # of that the watchdog tells
                self._tell(key, said)
        return said

    def _tell(self, key: str, said: Said = (None, None)) -> Said:
        """What rank 0 says, on every rank, by the store; where that went with its launcher, in a collective."""
        from torch.distributed import DistNetworkError, DistStoreError

        while not self._is_gone:
            try:
                if self.ranks.rank == 0:
                    self._own.set(key, pickle.dumps(said))
                    self._own.check([key])  # what is sent to a store that has just gone is lost without an error
                    return said
                self._own.wait([key], timedelta(seconds=WAIT if self._watched else self.timeout))
                heard: Said = pickle.loads(self._own.get(key))
                return heard
            except DistNetworkError:
                deadline = time.monotonic() + (BEAT if self._watched else 0.0)
                while not self._launcher_is_gone():
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
                self._is_gone = True  # the ranks go on without it, stop, and save
            except DistStoreError:  # not yet
                if not self._watched:
                    raise
        told: Said = from_rank_0(said, self.ranks.world_size)
        return told

    def judged_by_rank_0(self, fact: Any, judge: Callable[[list[Any]], T]) -> T:
        """See the function of this name."""
        keys = [f"fact {self._told}/{rank}" for rank in range(self.ranks.world_size)]
        self._own.set(keys[self.ranks.rank], pickle.dumps(fact))
        seconds = 0.9 * self.timeout  # while the others still wait for what it says

        def make() -> T:
            try:
                self._own.wait(keys, timedelta(seconds=seconds))
            except Exception as error:
                missing = [rank for rank, key in enumerate(keys) if not self._own.check([key])]
                raise Explained(f"ranks {missing} did not come within {seconds:g} s") from error
            return judge([pickle.loads(known) for known in self._own.multi_get(keys)])

        return self.by_rank_0("all ranks to be compared", make)

    def is_heard(self) -> bool:
        """Whether no rank needs this process any more to hear what was told."""
        return not self._serves or self._own.add("heard", 0) >= self._to_hear


_met: list[Rendezvous] = []  # of this process, once it has met others


def meet(ranks: Ranks, timeout: float) -> Rendezvous:
    """The rendezvous of this process, made at the first call."""
    if not _met:
        _met.append(Rendezvous(ranks, timeout))
    return _met[0]


def by_rank_0(what: str, make: Callable[[], T], ranks: Ranks, timeout: float = 600.0) -> T:
    """What rank 0 makes, on every rank: before they are a process group and touch a device, and after.

    A collective would not do: its timeout is that of a rank that hangs. Once the ranks watch each other, they wait for
    rank 0 as long as it lives.

    Args:
        what: What rank 0 does, for messages: "the checkpoint to be written".
        make: Called on rank 0 alone. What it gives has to pickle.
        ranks: Of this launch.
        timeout: Seconds that the others wait for it, as long as they do not watch each other.

    Raises:
        ConfigError: It did on rank 0, so it does on every rank.
        Explained: It failed on rank 0, which raises that itself; once the ranks watch each other, the watchdog ends
            the others, and tells why.
    """
    return make() if ranks.world_size == 1 else meet(ranks, timeout).by_rank_0(what, make)


def judged_by_rank_0(fact: Any, judge: Callable[[list[Any]], T], ranks: Ranks, timeout: float) -> T:
    """What rank 0 makes of what every rank knows, on every rank, before they are a process group.

    Args:
        fact: Of this rank. Anything that pickles.
        judge: Called on rank 0 alone, with the facts of all ranks in their order.
        ranks: Of this launch.
        timeout: Seconds to wait for every rank.

    Raises:
        ConfigError: It did on rank 0, so it does on every rank.
        Explained: A rank did not come, or `judge` failed.
    """
    return judge([fact]) if ranks.world_size == 1 else meet(ranks, timeout).judged_by_rank_0(fact, judge)


def until_heard(seconds: float = 30) -> None:
    """Let every rank hear what rank 0 has to tell before its process ends, and with it the store; some may never come.

    A rank that starts late would else wait for a store that is no longer there, for as long as a run's `timeout`.
    """
    deadline = time.monotonic() + seconds
    while _met and not _met[0].is_heard() and time.monotonic() < deadline:
        time.sleep(0.05)


def agent_serves_store() -> bool:
    """Whether the store in which ranks meet is torchrun's own, which outlives a restart of its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def own_part(name: str, store: Any) -> Any:
    """The part of a store that belongs to this start of the processes.

    Elsewhere than in an agent's, each start has a new store; and agents that joined later count fewer restarts than
    those that they joined.
    """
    import torch.distributed as dist

    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if agent_serves_store() else "0"
    return dist.PrefixStore(f"{name}/{restarts}", store)


def wait_for_rank_0(ranks: Ranks) -> None:
    """Wait for rank 0's store to listen, but not for ever: torch's own wait, in which it fails, comes next.

    A store that is asked before it listens is asked again after 0.5 to 1.5 s, in which all ranks stand still.
    """
    deadline = time.monotonic() + 10
    while ranks.rank and time.monotonic() < deadline:
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 1).close()
            return
        except OSError:
            time.sleep(0.01)
