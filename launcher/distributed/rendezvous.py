"""The store in which ranks meet, by which rank 0 tells the others before they are a process group."""

import os
import pickle
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from launcher.core.errors import ConfigError, Explained
from launcher.distributed.ranks import Ranks

T = TypeVar("T")
_told: "list[_Told]" = []  # by which `told_by_rank_0` tells, once it has


def told_by_rank_0(make: Callable[[], T], ranks: Ranks, timeout: float) -> T:
    """What rank 0 makes, on every rank, before they are a process group and touch a device. Anything that pickles.

    Args:
        make: Called on rank 0 alone.
        ranks: What find_ranks found.
        timeout: Seconds that the others wait for it.

    Raises:
        ConfigError: It did on rank 0, so it does on every rank.
        Explained: It failed on rank 0, which raises that itself.
    """
    if ranks.world_size == 1:
        return make()
    told = _telling(ranks, timeout)
    number = told.begin()
    if ranks.rank == 0:
        said: tuple[Exception | None, Any] = (Explained("rank 0 was stopped"), None)
        try:
            said = None, make()
            return said[1]
        except ConfigError as error:
            said = ConfigError(str(error)), None
            raise
        except Exception as error:
            said = Explained(f"rank 0 failed: {error}"), None
            raise
        finally:
            told.store.set(number, pickle.dumps(said))
            told.store.add("heard", 1)
    problem, thing = pickle.loads(told.store.get(number))
    told.store.add("heard", 1)
    if problem is not None:
        raise problem
    return thing


def judged_by_rank_0(fact: Any, judge: Callable[[list[Any]], T], ranks: Ranks, timeout: float) -> T:
    """What rank 0 makes of what every rank knows, on every rank, before they are a process group.

    Args:
        fact: Of this rank. Anything that pickles.
        judge: Called on rank 0 alone, with the facts of all ranks in their order.
        ranks: What find_ranks found.
        timeout: Seconds to wait for every rank.

    Raises:
        ConfigError: It did on rank 0, so it does on every rank.
        Explained: A rank did not come, or `judge` failed.
    """
    if ranks.world_size == 1:
        return judge([fact])
    told = _telling(ranks, timeout)
    keys = [f"fact {told.times}/{rank}" for rank in range(ranks.world_size)]
    told.store.set(keys[ranks.rank], pickle.dumps(fact))

    def make() -> T:
        try:
            told.store.wait(keys, timedelta(seconds=0.9 * timeout))  # while the others still wait for what it says
        except Exception as error:
            missing = [rank for rank, key in enumerate(keys) if not told.store.check([key])]
            raise Explained(f"ranks {missing} did not come within {0.9 * timeout:g} s") from error
        return judge([pickle.loads(known) for known in told.store.multi_get(keys)])

    return told_by_rank_0(make, ranks, timeout)


def _telling(ranks: Ranks, timeout: float) -> "_Told":
    if not _told:
        _told.append(_Told(ranks, timeout))
    return _told[0]


class _Told:
    """The store by which rank 0 tells the others, which the process group shares later.

    Args:
        ranks: What find_ranks found.
        timeout: Seconds that each waits for it.
    """

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        import torch.distributed as dist

        # With multi_tenant the process group, which is made later at the same address, finds this store and shares it.
        self.world_size, self.leads = ranks.world_size, ranks.rank == 0 and not agent_serves_store()
        address, wait = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=timeout)
        _until_rank_0_listens(ranks)
        store = dist.TCPStore(*address, self.world_size, self.leads, wait, wait_for_workers=False, multi_tenant=True)
        self.store, self.times = own_part("told", store), 0

    def begin(self) -> str:
        """Under which name the next thing is told."""
        self.times += 1
        return f"said {self.times}"

    def is_heard(self) -> bool:
        """Whether no rank needs this process any more to hear what was told."""
        return not self.leads or self.store.add("heard", 0) >= self.times * self.world_size


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


def _until_rank_0_listens(ranks: Ranks, seconds: float = 10) -> None:
    """Wait for rank 0's store to listen, but not for ever: torch's own wait, in which it fails, comes next.

    A store that is asked before it listens is asked again after 0.5 to 1.5 s, in which all ranks stand still.
    """
    deadline = time.monotonic() + seconds
    while ranks.rank and time.monotonic() < deadline:
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 1).close()
            return
        except OSError:
            time.sleep(0.01)


def until_heard(seconds: float = 30) -> None:
    """Let every rank hear what `told_by_rank_0` has to tell before this process ends, and with it the store.

    A rank that starts late would else wait for a store that is no longer there, for as long as a run's `timeout`.

    Args:
        seconds: How long to wait for ranks that may never come.
    """
    deadline = time.monotonic() + seconds
    while _told and not _told[0].is_heard() and time.monotonic() < deadline:
        time.sleep(0.05)
