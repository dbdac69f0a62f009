"""The processes of a trial: how they start, whether they move on, and how they ended."""

import contextlib
import importlib
import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import launcher
from launcher.core.processes import exists, process_facts
from launcher.distributed.pulse import share
from launcher.distributed.stop_request import SIGNALS
from launcher.sweep.failure import OUTPUT, how_it_ended, tail
from launcher.sweep.fork_server import CONTEXT, start_process
from launcher.sweep.leases import Lease
from launcher.sweep.trials import Program, Trial

LOST = 255  # what multiprocessing says of a process whose parent, the fork server, is dead
STOPPING = 60.0  # seconds in which a trial that was asked to stop saves and ends


def run_rank(
    program: Program,
    packed: bytes,
    command: str | None,
    environment: Mapping[str, str],
    cores: Sequence[int],
    output: str,
    leases: Sequence[Lease],
    pulse: Any,
) -> None:
    """Be one process of a trial, forked from the server: call the program's entry with what the trial has packed.

    It has `environment` as a whole, stays on `cores` (any, where that is empty), and prints into the file `output`.
    The devices of `leases` are free when the last process of the trial is gone. By `pulse`, [3] in shared memory, it
    tells that it moves on; see pulse.share. None: nobody asks.
    """
    os.setsid()
    _end_with_parent(os.getppid())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if program.preload not in sys.modules:
        print("warning: this process was not started warm, which costs seconds", file=sys.stderr)
    module, _, name = program.entry.rpartition(".")
    entry = getattr(importlib.import_module(module), name)
    launcher.command = command
    if pulse is not None:
        share(pulse)
    sys.exit(entry(*program.shared, *pickle.loads(packed)))


def _end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent dies: stop_request.py would notice, but runs only later."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


@dataclass
class TrialProcesses:
    """The processes of a trial that runs; all times are seconds of time.monotonic."""

    trial: Trial
    leases: list[Lease]  # of its devices
    offset: int = 0  # where this attempt begins in its output
    ranks: list[Any] = field(default_factory=list)  # the processes
    pulses: list[Any] = field(default_factory=list)  # what each rank tells of its main thread; see pulse.share
    started: float = field(default_factory=time.monotonic)  # when the last of them was
    first_failure: float | None = None  # when the first rank that failed was seen to have ended
    asked: float | None = None  # when it was asked to stop
    moving: bool = False  # whether that was in order to go on with another number of processes
    killed: str = ""  # why it was
    ended: list[int] = field(default_factory=list)  # the ranks that have, in that order
    _sign: Any = None  # the last one of life
    _seen: float = field(default_factory=time.monotonic)  # when that was
    _used: float = 0.0  # CPU seconds by then

    def start(self, environment: Mapping[str, str], cores: Sequence[int]) -> None:
        """Start all ranks in an environment, to which each adds its number, and on some cores; see `run_rank`."""
        trial, output = self.trial, self.trial.path / OUTPUT
        self.offset = output.stat().st_size if output.exists() else 0
        for rank in range(trial.processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if trial.processes > 1 else {}
            pulse = CONTEXT.RawArray("d", 3) if math.isfinite(trial.timeout) else None
            self.pulses += [pulse] if pulse is not None else []
            what = (launcher.command, {**environment, **own}, cores, str(output), self.leases, pulse)
            self.ranks.append(start_process(run_rank, trial.program, trial.packed, *what))
        self.started = self._seen = time.monotonic()

    def note_ended(self, now: float) -> bool:
        """Note which ranks have ended since the last call, and say whether all have."""
        for number, rank in enumerate(self.ranks):
            if number not in self.ended and _has_ended(rank):
                self.ended.append(number)
                if rank.exitcode != 0 and self.first_failure is None:
                    self.first_failure = now  # after a good end rank 0 may take its time, to send to W&B
        return len(self.ended) == len(self.ranks)

    @property
    def statuses(self) -> list[int | None]:
        """Exit status of each rank."""
        return [rank.exitcode for rank in self.ranks]

    @property
    def printed(self) -> str:
        """The end of what this attempt has printed."""
        return tail(self.trial.path / OUTPUT, self.offset)

    def went_as_wanted(self, asked: bool) -> bool:
        """Whether all ranks ended well, or, where they were asked to stop, at once by that signal."""
        if self.killed:
            return False
        good = (0, -signal.SIGTERM, 128 + signal.SIGTERM, LOST) if asked else (0,)
        return all(status in good for status in self.statuses)

    def failure(self) -> str:
        """One line about a failure: why it was killed, else what the first rank that failed said or how it ended."""
        if self.killed:
            return self.killed
        rank = next(rank for rank in self.ended if self.statuses[rank] != 0)
        status = self.statuses[rank] or 0
        return how_it_ended(rank, status, self.printed)

    @property
    def patience(self) -> float:
        """Seconds in which it saves and ends when it is asked to."""
        return STOPPING + max((told[2] for told in self.pulses), default=0.0)

    def ask_to_stop(self, now: float) -> None:
        """Ask all ranks to save and end."""
        self.asked = now
        self.send(signal.SIGTERM)

    def ask_to_move(self, now: float) -> None:
        """Ask all ranks to save and end, since the trial is to go on with another number of them."""
        self.moving = True
        self.ask_to_stop(now)

    @property
    def trains(self) -> bool:
        """Whether all ranks have done an update."""
        return all(told[1] for told in self.pulses)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each rank that is there."""
        for rank in self.ranks:
            if not _has_ended(rank):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid, number)

    def kill(self, why: str) -> None:
        """End all ranks at once."""
        self.killed = self.killed or why
        self.send(signal.SIGKILL)

    def ended_by_accident(self) -> bool:
        """Whether another took its port or its directory in between, or the fork server was killed."""
        taken = "EADDRINUSE" in self.printed or (2 in self.statuses and "a run is in it" in self.printed)
        return taken or LOST in self.statuses

    def is_silent(self, now: float, seconds: float) -> bool:
        """Whether no sign of life has come for so long, and there is none now either."""
        return now - self._seen > seconds and not self._gives_sign()

    def _gives_sign(self) -> bool:
        """Whether it did anything since it last gave a sign of life: wrote, or a main thread of it moved on.

        Until its first update it may also use a hundredth of a core: to prepare data takes one line of a library at
        times. Afterwards that says nothing: a process that waits for its GPU in vain spins.
        """
        files = [self.trial.path / name for name in (OUTPUT, "metrics.jsonl", "timings.jsonl")]
        sign = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
        sign += [(int(told[0]), int(told[1])) for told in self.pulses]
        used, now = sum(_cpu_seconds(rank.pid) for rank in self.ranks if not _has_ended(rank)), time.monotonic()
        works = used - self._used >= 0.01 * (now - self._seen) and not self.trains
        if sign == self._sign and not works:
            return False
        self._sign, self._used, self._seen = sign, used, now
        return True


def _has_ended(rank: Any) -> bool:
    """Whether a process is gone; that of a parent that died is asked for itself, since nobody else knows any more."""
    return rank.exitcode is not None and (rank.exitcode != LOST or not exists(rank.pid))


def _cpu_seconds(pid: int | None) -> float:
    return sum(map(int, process_facts(pid)[11:15])) / os.sysconf("SC_CLK_TCK") if pid else 0.0
