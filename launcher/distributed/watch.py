"""Each rank watches the others, so that none waits for one that died, failed or hangs.

A rank writes a heartbeat into the store that torch.distributed met in, and reads the others'. A dead process is seen
by its neighbours on the same machine, which know its pid, and told to the rest. A collective alone would not do: NCCL
waits for minutes and then ends the process from a thread of its own, and gloo says "connection reset" without saying
by whom. The process group's own timeout is therefore much longer (distributed.py).
"""

import atexit
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

from launcher.core.errors import BrokenFile, ConfigError, Explained
from launcher.core.streams import keep_streams
from launcher.distributed.process_group import Ranks, from_rank_0, until_heard
from launcher.distributed.pulse import BEAT, GAP, Onlooker, pulse
from launcher.distributed.stopping import ctrl_c_was_pressed, heed_ctrl_c, leave, watch_launcher

log = logging.getLogger("launcher")

T = TypeVar("T")
WAIT = 30.0  # seconds that one question to the store lasts while rank 0 takes its time
NEIGHBOURS = 4  # ranks that each one looks at; if it were all, rank 0 would serve the square of their number
PATIENCE = 5.0  # seconds in which the rank that failed first is given time to say so before an echo speaks


current: "Watch | None" = None  # of this process, for who handles an exception at its very end


class Watch:
    """The watch of one rank over its peers.

    Args:
        ranks: Which rank this is.
        timeout: Seconds after which a rank counts as hung: without a heartbeat, or with its main thread at one place.
    """

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        from torch.distributed import PrefixStore, distributed_c10d

        self.ranks, self.timeout = ranks, timeout
        store = distributed_c10d._get_default_store()
        while isinstance(store, PrefixStore):
            store = store.underlying_store
        # A connection of its own: a client answers one call at a time, and the main thread may wait in one. A name of
        # its own: torchrun's store outlives a restart, and holds what the group before it wrote.
        name = f"launcher/{from_rank_0(uuid.uuid4().hex, ranks.world_size)}"
        self._store = PrefixStore(name, store.clone())
        self._told: Any
        self._told, self._tellings = PrefixStore(name, store.clone()), 0  # on which the main thread waits for rank 0
        self._done = threading.Event()
        self._leaving = self._store_is_gone = False
        self._launcher_is_gone = watch_launcher()
        self._host = socket.gethostname()
        self._store.append(f"host/{self._host}", f"{ranks.rank} {os.getpid()}\n")  # type: ignore[attr-defined]
        after = range(ranks.rank + 1, ranks.rank + 1 + min(NEIGHBOURS, ranks.world_size - 1))
        self._neighbours = [rank % ranks.world_size for rank in after]
        global current
        current = self
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def by_rank_0(self, what: str, make: Callable[[], T]) -> T:
        """What rank 0 makes, however long that takes it: the others wait as long as it lives. Anything that pickles.

        A collective would not do: its timeout is that of a rank that hangs.

        Args:
            what: What rank 0 does, for messages: "the checkpoint to be written".
            make: Called on rank 0 alone. What it raises ends this rank and, told by the watch, the others.
        """
        problem, made = None, None
        with pulse.waits(what if self.ranks.rank == 0 else f"rank 0, and that for {what}"):
            if self.ranks.rank == 0:
                try:
                    made = make()
                except ConfigError as error:  # of the user's, so of every rank
                    problem = str(error)
            problem, made = self._tell((problem, made))
        if problem is not None:
            raise ConfigError(problem)
        return cast(T, made)

    def _tell(self, thing: Any) -> Any:
        """What rank 0 has, on every rank, by the store; where that went with its launcher, in a collective."""
        from torch.distributed import DistNetworkError, DistStoreError

        self._tellings += 1
        key = f"told/{self._tellings}"
        while not self._store_is_gone:
            try:
                if self.ranks.rank == 0:
                    self._told.set(key, pickle.dumps(thing))
                    self._told.check([key])  # what is sent to a store that has just gone is lost without an error
                    return thing
                self._told.wait([key], timedelta(seconds=WAIT))
                return pickle.loads(self._told.get(key))
            except DistNetworkError:
                deadline = time.monotonic() + BEAT
                while not self._launcher_is_gone():  # then the ranks go on without it, stop, and save
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
                self._store_is_gone = True
            except DistStoreError:  # not yet; the watch ends this process if rank 0 is gone
                continue
        return from_rank_0(thing, self.ranks.world_size)

    def leave(self) -> None:
        """Say that this rank is done: its process may end from the next barrier on, and nobody should wonder."""
        self._leaving = True
        self._set("leaving", True)

    def close(self) -> None:
        """Stop watching; every rank must have passed a barrier before."""
        self._done.set()
        self._thread.join(2 * BEAT)

    def failed(self, text: str) -> str | None:
        """Tell the others that this rank failed, unless another one did before.

        Args:
            text: What happened, for their messages.

        Returns:
            None where this rank is the first: it should say what happened. Else what to say in its place.
        """
        if self._done.is_set():
            return None  # the others have left
        if _is_echo(text):  # the watch knows, or will in a moment, who is behind it, says so and ends this process
            self._thread.join(PATIENCE)
        self._done.set()
        try:
            if "Timed out" in text:  # all of them live: say where each stands, the one that does not come among them
                places = self._places(self._beats())
                others = [f"rank {rank} was {place}" for rank, place in places.items() if rank != self.ranks.rank]
                text = "\n".join([*others, text])
            self._store.compare_set("failure", "", json.dumps({"rank": self.ranks.rank, "text": text}))
            first = self._first_failure()
        except Exception:  # the store went with rank 0
            return None
        if first is not None and first["rank"] != self.ranks.rank:
            self._linger()
            return f"rank {self.ranks.rank} ends, because rank {first['rank']} {first['text'].splitlines()[-1]}"
        self._linger()
        return text if "Timed out" in text else None

    def _beats(self) -> dict[int, Any]:
        """The last heartbeat of each rank that has told one."""
        beats = {rank: self._get("beat", rank) for rank in range(self.ranks.world_size)}
        return {rank: beat for rank, beat in beats.items() if beat}

    @staticmethod
    def _places(beats: Mapping[int, Any]) -> dict[int, str]:
        """Where the main thread of each rank was at its heartbeat."""
        return {rank: f"at step {beat[1]}, {beat[2]}" for rank, beat in beats.items()}

    def _linger(self) -> None:
        """The store may go with rank 0: let the others read first who is behind it all."""
        if self.ranks.rank == 0:
            time.sleep(1.5 * BEAT)

    def _set(self, what: str, value: Any) -> None:
        self._store.set(f"{what}/{self.ranks.rank}", json.dumps(value))

    def _get(self, what: str, rank: int) -> Any:
        key = f"{what}/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _first_failure(self) -> Any:
        return json.loads(self._store.get("failure")) if self._store.check(["failure"]) else None

    def _run(self) -> None:
        beats: dict[int, Any] = {}
        changed: dict[int, float] = {}
        count, looks, waited, looked = 0, Onlooker(), 0.0, time.monotonic()
        while not self._done.wait(BEAT):
            try:
                count += 1
                still = looks.seconds_still()
                self._set("beat", [count, pulse.step or 0, pulse.place(), round(still), pulse.meets()])
                now = time.monotonic()
                if now - looked > GAP:  # the job was suspended: nobody could have moved
                    changed = dict.fromkeys(changed, now)
                looked = now
                waited = 0.0 if pulse.waiting is None else waited or now
                if waited and now - waited > self.timeout:
                    log.warning("rank %d has been waiting for %s for %.0f s more", self.ranks.rank, pulse.waiting,
                                now - waited)  # fmt: skip
                    waited = now
                for rank in self._neighbours:
                    beat = self._get("beat", rank)
                    if beats.get(rank, ()) != beat or rank not in changed:
                        beats[rank], changed[rank] = beat, now
                failure = self._first_failure()
                if failure is not None and failure["rank"] != self.ranks.rank:
                    text = failure["text"].splitlines()[-1]
                    self._end(f"rank {self.ranks.rank} ends, because rank {failure['rank']} {text}")
                gone = self._gone()
                for rank in self._neighbours:
                    if now - changed[rank] > self.timeout:
                        step = (beats[rank] or [0, "?"])[1]
                        text = (
                            f"rank {rank} has been silent for {now - changed[rank]:.0f} s (timeout={self.timeout:g}), "
                            f"last seen at step {step}: it hangs, or its machine is gone."
                        )
                        self._store.compare_set("silent", "", text)
                if still > self.timeout + 2 * BEAT:  # a rank without a heartbeat is noticed first, and is why
                    self._store.compare_set("still", "", f"{still:.0f}")
                if self._store.check(["silent"]):
                    self._end(f"{self._store.get('silent').decode()} rank {self.ranks.rank} ends.")
                if self._store.check(["still"]):
                    self._end(f"{self._who_hangs()} rank {self.ranks.rank} ends.")
                if gone is not None:  # after the silent one, whom the first that ends has killed where it was stopped
                    self._end(self._say_gone(gone))
            except Exception as error:  # the store is gone: with it rank 0, or the launcher that held it
                self._done.wait(0.5)
                if self._leaving or self._launcher_is_gone():
                    return  # rank 0 has left; or torchrun was killed and its store with it: the ranks stop, and save
                if not self._done.is_set():
                    self._end(f"rank {self.ranks.rank} ends: rank 0 or its launcher is gone ({type(error).__name__}).")

    def _who_hangs(self) -> str:
        """Where the main thread of every rank is, those first that do not wait for others."""
        seconds = int(self._store.get("still"))
        beats = self._beats()
        at = self._places(beats)
        hang = [rank for rank, beat in beats.items() if not beat[4] and beat[3] >= seconds / 2]
        others = [f"rank {rank} is {place}." for rank, place in at.items() if rank not in hang]
        still = f"has not moved for {seconds} s (timeout={self.timeout:g})"
        head = [f"rank {rank} hangs: it {still}, {at[rank]}." for rank in hang]
        return " ".join([*(head or [f"no rank of those that wait for each other {still}:"]), *others])

    def _gone(self) -> dict[str, Any] | None:
        """The first rank whose process is there no more, found by a neighbour on its machine."""
        for rank, pid in self._here().items():
            if rank != self.ranks.rank and not exists(pid) and not self._get("leaving", rank):
                self._store.compare_set("gone", "", json.dumps({"rank": rank, "pid": pid, "host": self._host}))
        return json.loads(self._store.get("gone")) if self._store.check(["gone"]) else None

    def _here(self) -> dict[int, int]:
        """Pid of each rank on this machine."""
        lines = self._store.get(f"host/{self._host}").decode().splitlines()
        return {int(rank): int(pid) for rank, pid in (line.split() for line in lines)}

    def _say_gone(self, gone: dict[str, Any]) -> str:
        return (
            f"rank {gone['rank']} (pid {gone['pid']} on {gone['host']}) is gone: it was killed, or ran out of memory. "
            f"rank {self.ranks.rank} ends."
        )

    def _end(self, message: str) -> None:
        if self._done.is_set():
            return
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
        # A child of the launcher that is stopped does not take SIGTERM; torchrun kills it, but only 30 s later.
        with contextlib.suppress(Exception):
            for pid in self._here().values():
                if _stopped(pid):
                    os.kill(pid, signal.SIGKILL)
        self._linger()
        leave(1)


def _is_echo(text: str) -> bool:
    """Whether an exception looks like that of a rank whose peer is gone."""
    words = (
        "Connection reset",
        "Connection closed",
        "Broken pipe",
        "Socket",
        "gloo",
        "NCCL",
        "DistBackendError",
        "DistNetworkError",
        "Timed out",
    )
    return any(word in text for word in words)


def exists(pid: int) -> bool:
    """Whether a process of this machine is there, and not only as one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def _stopped(pid: int) -> bool:
    return _state(pid) == "T"


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


def describe_failure() -> str:
    """The exception being handled, as its traceback with a last line `failed: Type: message`."""
    kind, value, _ = sys.exc_info()
    if isinstance(value, BrokenFile):  # nobody needs to know who read it
        return f"failed: {value.in_short()}"
    if isinstance(value, Explained):
        return f"failed: {value}"
    return f"{traceback.format_exc()}failed: {kind.__name__ if kind else ''}: {value}".rstrip()


def guarded(run: Callable[[], int]) -> int:
    """Run the program and turn what it raises into its exit status and message.

    Returns:
        What `run` returned. After an exception the process ends here: 2 for wrong input, with the message alone; 1 for
        a failure, with the traceback and the rank. It does not wait for threads that may wait for a dead peer. A rank
        of several ends here too: what is saved is saved, and torch's threads at times abort a process that unloads.
    """
    keep_streams()
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):  # not where it is ignored
        heed_ctrl_c()
    os.environ["MPLBACKEND"] = "agg"  # that of the notebook or desktop where this was started need not even import
    rank = int(os.environ.get("RANK", "0")) if os.environ.get("RANK", "0").isdigit() else 0
    try:
        status = run()
        if current is None:
            return status
        atexit._run_exitfuncs()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if ctrl_c_was_pressed():
            status = 130
        elif isinstance(error, ConfigError):
            # Every rank finds the same mistake. Rank 0 speaks; the launcher then ends the others before they do.
            time.sleep(3 if rank else 0)
            print(f"error: {error}", file=sys.stderr)
            status = 2
        else:
            text = describe_failure()
            echo = current.failed(text) if current is not None else None
            print(echo or f"rank {rank} failed:\n{text}", file=sys.stderr)
            status = 1
    if status != 130:
        until_heard()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    leave(status)


def by_rank_0(what: str, make: Callable[[], T], world_size: int) -> T:
    """What rank 0 makes, on every rank, however long it takes; see `Watch.by_rank_0`.

    Args:
        what: What rank 0 does, for messages.
        make: Called on rank 0 alone.
        world_size: Number of ranks; where they do not watch each other, they meet in a collective.
    """
    if current is not None:
        return current.by_rank_0(what, make)
    import torch.distributed as dist

    return from_rank_0(make() if world_size == 1 or dist.get_rank() == 0 else None, world_size)


def finish(watch: "Watch | None") -> None:
    """Leave the group together.

    Args:
        watch: This rank's watch over its peers, which from here on may go; None in a group of one.
    """
    if watch is None:
        return
    import torch.distributed as dist

    watch.by_rank_0("what it has left to write", lambda: None)
    watch.leave()
    dist.barrier()
    watch.close()
    dist.destroy_process_group()
