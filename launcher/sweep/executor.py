"""The trials of a sweep on this machine: each in processes and on devices of its own, once, whatever is killed."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection

from launcher.core.processes import cores
from launcher.distributed.stop_request import StopRequest
from launcher.distributed.threads import exported_threads
from launcher.run.pictures import LATER
from launcher.sweep import packing
from launcher.sweep.feed import Feed
from launcher.sweep.leases import Lease, Pool
from launcher.sweep.malleable import Malleable
from launcher.sweep.packing import Packing
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.showing import Showing
from launcher.sweep.trial_processes import TrialProcesses
from launcher.sweep.trial_queue import WORDS, TrialQueue
from launcher.sweep.trial_state import State
from launcher.sweep.trials import TRAINING, Trial

POLL = 0.2  # seconds between two looks at what no event tells: progress, hangs, devices of other sweeps
PEERS = 75.0  # seconds in which ranks end after one has failed: they need 2 (watchdog.py), or a minute to save
# Of the sweep's own launch, and the threads that its launcher chose: nothing for the trials.
OF_THE_LAUNCH = re.compile(
    r"(TORCHELASTIC|ACCELERATE|FSDP|PET)_|SLURM_(STEP|PROCID|LOCALID)"
    r"|(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_RANK|ROLE_WORLD_SIZE|ROLE_NAME"
    r"|MASTER_ADDR|MASTER_PORT|OMP_NUM_THREADS|KMP_AFFINITY)$"
)


class Executor(TrialQueue):
    """Runs trials until each is finished, failed, or the sweep was asked to stop."""

    def __init__(
        self,
        trials: Sequence[Trial],
        pools: Mapping[str, Pool],  # devices by kind
        limit: int | None,  # most trials at once; None: as many as there are devices for
        max_time: float | None,  # seconds that a trial may take
        display: ProgressDisplay,
        feed: Feed | None = None,  # what comes when no trial waits, one at a time
        shares: Packing | None = None,  # how trials share devices; None: they do not
    ) -> None:
        super().__init__(trials, display, feed)
        self.pools, self.limit, self.max_time = pools, limit or sys.maxsize, max_time
        self.malleable = Malleable(pools, self.limit)
        self.moved: dict[int, int] = {}  # trials that go on elsewhere, by index: with how many processes they ran
        self.spent: dict[int, float] = {}  # seconds that a trial ran before it was moved, by its index
        self.running: list[TrialProcesses] = []
        self.showing, self.packing = Showing(), shares or Packing(1)
        self.environment = environment_of_trials()
        self.ports: set[int] = set()
        self.waiting_said = 0.0  # when it was last said that all devices are others'

    def run(self, stop: StopRequest) -> None:
        """Run all trials to their ends, or until it is asked to stop."""
        while self.running or (self.has_more() and not stop):
            if not stop:
                self._start_what_fits()
                self._move()
            self._wait()
            for run in list(self.running):
                self._supervise(run, stop.reason)
            self.showing.go_on()
            self.display.update([(run.trial, run.started - self._spent(run.trial)) for run in self.running])
        self.malleable.close()

    def _next_trials(self) -> Iterator[Trial]:
        """Those that wait, and then, as long as there is a device for one, those that a search chooses."""
        yield from list(self.queue)
        while self.feed is not None and not self.queue and len(self.running) < self.limit:
            like = self.feed.like
            free = self.pools[like.kind].has(self._devices_for(like), self.packing.share_of(like))
            if not free or (trial := self.feed.next()) is None:
                return
            self.queue.append(trial)
            yield trial

    def _devices_for(self, trial: Trial) -> int:
        """How many a trial takes: of a CPU a core for each thread, as far as there are cores."""
        return trial.world if trial.kind == "gpu" else min(trial.world * trial.threads, len(self.pools[trial.kind]))

    def _start_what_fits(self) -> None:
        blocked: set[str] = set()  # kinds of devices of which there are too few
        for trial in self._next_trials():
            if len(self.running) >= self.limit:
                return
            if trial.kind in blocked or not self.is_ours(trial):
                continue
            pool = self.pools[trial.kind]
            if not self.packing.has_room(trial, len(self.running)):
                return
            if trial.is_malleable:
                trial.world = self.malleable.world_for(trial, self.running, self._waiting())
            if (leases := pool.take(self._devices_for(trial), self.packing.share_of(trial))) is None:
                blocked.add(trial.kind)
                self._say_who_has_them(pool)
                continue
            self.queue.remove(trial)
            self._start(trial, leases)

    def _waiting(self) -> list[Trial]:
        """Trials that would start if there were devices for them: those of the queue, and those that a feed has."""
        coming = 0 if self.feed is None else min(self.feed.coming, sum(map(len, self.pools.values())))
        return [*self.queue, *([self.feed.like] * coming if self.feed is not None else [])]

    def _move(self) -> None:
        """Ask trials to stop that are to go on with more devices, or with fewer; tell others what is waited for."""
        if self.malleable.is_due(now := time.monotonic()):
            for run in self.malleable.moves(now, self.running, self._waiting()):
                run.ask_to_move(now)

    def _spent(self, trial: Trial) -> float:
        return self.spent.get(trial.index, 0.0)

    def _say_who_has_them(self, pool: Pool) -> None:
        late = not self.running and time.monotonic() - self.waiting_said > 60
        if late and (holders := pool.holders()):
            self.display.note(f"waiting    for devices that others hold ({', '.join(holders)})")
            self.waiting_said = time.monotonic()

    def _start(self, trial: Trial, leases: list[Lease]) -> None:
        try:
            self.prepare(trial)
        except OSError as error:
            self.pools[trial.kind].give_back(leases)
            self.could_not_prepare(trial, error)
            return
        names = [lease.device for lease in leases]
        run = TrialProcesses(trial, leases)
        environment = self._environment_of(trial, names) | packing.environment(leases[0].share)
        run.start(environment, self._cores_of(trial, names))
        word = WORDS.get(trial.state, "resumed")
        trial.lifecycle.start()
        self.running.append(run)
        if self.moved.pop(trial.index, trial.world) != trial.world:
            word = f"moved to {processes(trial)}"
        self.display.say(trial, f"{word} on {trial.kind} {','.join(names)}")

    def _environment_of(self, trial: Trial, names: Sequence[str]) -> dict[str, str]:
        """What all ranks of a trial have in their environment."""
        listed = ",".join(names)
        environment = self.environment | {"LAUNCHER_DEVICES": listed, "CUDA_VISIBLE_DEVICES": "", LATER: "1"}
        if trial.kind == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = listed
            environment.pop("HIP_VISIBLE_DEVICES", None)
        if trial.processes > 1:
            environment |= {
                "WORLD_SIZE": str(trial.processes),
                "LOCAL_WORLD_SIZE": str(trial.processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(_free_port(self.ports)),
            }
        return environment

    def _cores_of(self, trial: Trial, names: Sequence[str]) -> list[int]:
        """The CPU cores that a trial stays on; empty: any."""
        if trial.kind == "gpu":
            return []
        every, slots = cores(), list(self.pools[trial.kind].locks)
        return sorted({int(name) if name.isdigit() else every[slots.index(name) % len(every)] for name in names})

    def _wait(self) -> None:
        """Until a process ends, or it is time to look at what no event tells."""
        sentinels = [rank.sentinel for run in self.running for rank in run.ranks if rank.exitcode is None]
        if sentinels:
            connection.wait(sentinels, timeout=POLL)
        else:
            time.sleep(POLL)

    def _supervise(self, run: TrialProcesses, stopping: str | None) -> None:
        """Look after a trial: take it off the list where it has ended, end it where it should and does not."""
        now, timeout = time.monotonic(), run.trial.timeout
        if run.note_ended(now):
            self.running.remove(run)
            self._end(run, stopping)
            for rank in run.ranks:
                rank.close()
        elif stopping and run.asked is None:
            run.ask_to_stop(now)
        elif run.asked is not None and now - run.asked > run.patience:
            run.kill(f"did not stop within {run.patience:.0f} s of being asked to")
        elif run.first_failure is not None and now - run.first_failure > PEERS:
            run.send(signal.SIGKILL)  # why the first rank failed stays the reason
        elif (
            self.max_time is not None
            and run.asked is None
            and now - run.started + self._spent(run.trial) > self.max_time
        ):
            run.killed = f"took longer than hydra.launcher.max_time_per_run ({self.max_time:g} s)"
            run.ask_to_stop(now)
        elif run.is_silent(now, timeout):
            run.kill(f"hangs: it has not moved for {timeout:g} s (timeout)")
        else:
            run.is_silent(now, min(1.0, timeout / 4))  # notes a sign of life

    def _end(self, run: TrialProcesses, stopping: str | None) -> None:
        """Say how a trial ended whose processes are gone, or put it back into the queue."""
        trial, now = run.trial, time.monotonic()
        seconds = now - run.started + self._spent(trial)
        self.pools[trial.kind].give_back(run.leases)
        if run.went_as_wanted(asked=run.asked is not None or stopping is not None):
            trial.lifecycle.end(trial.found())
            if run.moving and not stopping and trial.state not in (State.FINISHED, State.PRUNED):
                self.malleable.ended(run, now)
                self.moved[trial.index] = trial.world
                self._put_back(trial, seconds)
                return
        elif not stopping and self._is_accident(run) and self.may_retry(trial):
            trial.lifecycle.end(trial.found())
            self.queue.insert(0, trial)
            return
        elif not stopping and self.packing.wants_alone(run):
            trial.lifecycle.end(trial.found())
            self.display.say(trial, "ran out of memory beside others; it goes on with its device for itself")
            self._put_back(trial, seconds)
            return
        elif not stopping and self.malleable.goes_back(run):
            trial.lifecycle.end(trial.found())
            self.display.say(trial, f"goes back to {processes(trial)}: {run.failure()}")
            self._put_back(trial, seconds)
            return
        else:
            self.note_failure(run, run.statuses, seconds)
        if trial.state == State.FINISHED and trial.program is TRAINING:
            self.showing.add(trial.path)
            self.packing.note_end(trial)
        self.note_end(trial, seconds)

    def _put_back(self, trial: Trial, seconds: float) -> None:
        """Let a trial go on before all others; of its time it has had so many seconds."""
        self.spent[trial.index] = seconds
        self.queue.insert(0, trial)

    def _is_accident(self, run: TrialProcesses) -> bool:
        """Whether a trial ended by no fault of its own: where others are chosen by it, by a SIGKILL too."""
        killed = self.feed is not None and not run.killed and -signal.SIGKILL in run.statuses
        return run.ended_by_accident() or killed


def processes(trial: Trial) -> str:
    """How many it has, in words."""
    return f"{trial.world} process{'es' if trial.world > 1 else ''}"


def environment_of_trials() -> dict[str, str]:
    """The environment without the ranks of the sweep's own launch, and without the threads that its launcher chose."""
    found = {key: value for key, value in os.environ.items() if not OF_THE_LAUNCH.match(key)}
    threads = exported_threads()
    return found if threads is None else found | {"OMP_NUM_THREADS": str(threads)}


def _free_port(used: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number = int(probe.getsockname()[1])
        if number not in used:
            used.add(number)
            return number
