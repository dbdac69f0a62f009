"""How many devices each trial has where that is a range: more while some idle, fewer when other trials wait."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.core.files import number
from launcher.sweep.leases import Pool
from launcher.sweep.progress import last_row
from launcher.sweep.trial_processes import TrialProcesses
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial
from launcher.sweep.wishes import Wish

LOOK = 1.0  # seconds between two looks at who could have more, or has to give back
APART = 10.0  # a trial that was moved trains so many times as long as a move costs it before the next: a tenth is lost
LEFT = 3.0  # and has so many times as long to go: with twice the devices it then gains half as much again as is lost


@dataclass
class Stay:
    """What a trial has done since its processes were started last."""

    run: TrialProcesses
    since: float  # when its first update was seen, in seconds of time.monotonic
    done: float  # share of the whole run by then, 0 to 1


class Malleable:
    """Chooses how many processes a trial starts with, and which trials are stopped to go on with more or fewer.

    Args:
        pools: Devices by kind.
        limit: Most trials at once.
    """

    def __init__(self, pools: Mapping[str, Pool], limit: int) -> None:
        self.pools, self.limit = pools, limit
        self._looked = 0.0
        self._wishes = {kind: Wish(pool) for kind, pool in pools.items()}
        self._stays: dict[int, Stay] = {}  # by the trial's index
        self._stops: dict[int, float] = {}  # seconds that its last stop for a move took

    def world_for(self, trial: Trial, running: Sequence[TrialProcesses], waiting: Sequence[Trial]) -> int:
        """The number of processes to start a trial with, which is among those that are `waiting`."""
        pool, sizes = self.pools[trial.kind], claim(trial, len(self.pools[trial.kind]))
        if len(sizes) == 1:
            return next(iter(sizes))
        others = [run for run in running if run.trial.kind == trial.kind]
        alike = [one for one in waiting if one.kind == trial.kind][: max(0, self.limit - len(running))]
        place = next((place for place, one in enumerate(alike) if one is trial), None)
        if place is None:
            return min(sizes)
        free = pool.free()
        claims = [*map(as_it_is, others), *(claim(one, len(pool)) for one in alike), *self._wished(trial.kind)]
        share = deal(free + sum(len(run.leases) for run in others), claims)[len(others) + place]
        return max(
            (world for world, devices in sizes.items() if world <= share and devices <= free), default=min(sizes)
        )

    def is_due(self, now: float) -> bool:
        """Whether it is time for `moves`."""
        return now - self._looked >= LOOK

    def moves(self, now: float, running: Sequence[TrialProcesses], waiting: Sequence[Trial]) -> list[TrialProcesses]:
        """The trials to stop now, since they are to go on with another number of processes; mostly none.

        One move is made after the other, so that each is decided by what the one before has led to. Other sweeps are
        told what this one waits for.
        """
        self._looked = now
        for run in running:
            self._watch(run, now)
        ready = [trial for trial in waiting if trial.state != State.WAITING][: max(0, self.limit - len(running))]
        found = []
        for kind, pool in self.pools.items():
            there = [run for run in running if run.trial.kind == kind]
            those = [claim(trial, len(pool)) for trial in ready if trial.kind == kind]
            least = min(those[0].values()) if those else 0
            self._wishes[kind].tell(least if not pool.has(least) else 0)
            if any(run.moving for run in there) or not any(run.trial.is_malleable for run in there):
                continue
            those += self._wished(kind)
            found += self._to_shrink(pool, there, those, now) if those else self._to_grow(pool, there, now)
        return found

    def close(self) -> None:
        """This sweep waits for nothing any more."""
        for wish in self._wishes.values():
            wish.tell(0)

    def _wished(self, kind: str) -> list[dict[int, int]]:
        """The claims of other sweeps."""
        return [{count: count} for count in self._wishes[kind].of_others()]

    def ended(self, run: TrialProcesses, now: float) -> None:
        """Note how long the stop of a trial took that was to be moved."""
        if run.asked is not None:
            self._stops[run.trial.index] = now - run.asked

    def goes_back(self, run: TrialProcesses) -> bool:
        """Whether a trial that failed is to go on with fewer processes, or from where it was to be moved.

        It is where more of them than the fewest were refused, such as more than there are samples in a batch, or where
        it did not stop in time. It is not moved again.
        """
        trial = run.trial
        refused = trial.is_malleable and trial.world > trial.sizes[0] and 2 in run.statuses and not run.trains
        if not refused and not (run.moving and run.killed):
            return False
        trial.sizes = trial.sizes[:1] if refused else (trial.world,)
        trial.world = trial.sizes[0]
        return True

    def _to_grow(self, pool: Pool, running: Sequence[TrialProcesses], now: float) -> list[TrialProcesses]:
        """Those that get some of the devices that idle: the smallest first, among these the one that takes longest."""
        if not (free := pool.free()):
            return []
        rests = {run.trial.index: self._rest(run, now) for run in running}
        ordered = sorted(running, key=lambda run: -(rests[run.trial.index] or 0.0))
        claims = [as_it_is(run) for run in ordered]
        for run, own in zip(ordered, claims, strict=True):
            if rests[run.trial.index] is not None:
                more = claim(run.trial, len(pool)).items()
                own.update({world: devices for world, devices in more if world > run.trial.world})
        shares = deal(free + sum(len(run.leases) for run in running), claims)
        return [run for run, share in zip(ordered, shares, strict=True) if share > run.trial.world]

    def _to_shrink(
        self, pool: Pool, running: Sequence[TrialProcesses], waiting: Sequence[dict[int, int]], now: float
    ) -> list[TrialProcesses]:
        """Those that give devices back for claims that wait: the largest first, no more than these need."""
        free, least = pool.free(), [min(own.values()) for own in waiting]
        if least[0] <= free:
            return []  # it is about to start
        movable = [self._rest(run, now) is not None for run in running]
        claims = [
            claim(run.trial, len(pool)) if may else as_it_is(run) for run, may in zip(running, movable, strict=True)
        ]
        total = free + sum(len(run.leases) for run in running)
        shares = deal(total, [*claims, *waiting])
        need = sum(devices for devices, share in zip(least, shares[len(running) :], strict=True) if share)
        found: list[TrialProcesses] = []
        for run, own, share in sorted(zip(running, claims, shares, strict=False), key=lambda of: -len(of[0].leases)):
            if free < need and share < run.trial.world:
                free += len(run.leases) - own[share]
                found.append(run)
        return found if free >= least[0] else []

    def _watch(self, run: TrialProcesses, now: float) -> None:
        stay = self._stays.get(run.trial.index)
        if run.trial.is_malleable and (stay is None or stay.run is not run) and run.trains:
            self._stays[run.trial.index] = Stay(run, now, share_done(run.trial))

    def _rest(self, run: TrialProcesses, now: float) -> float | None:
        """Seconds that a trial has to go at its pace; None where that is not known, or a move would not pay."""
        stay = self._stays.get(run.trial.index)
        if run.asked is not None or stay is None or stay.run is not run:
            return None
        start = stay.since - run.started  # to the first update
        cost = start + self._stops.get(run.trial.index, start)  # a first stop is taken to be as long
        done = share_done(run.trial)
        apart = APART if run.trial.index in self._stops else 1.0
        if now - stay.since < apart * cost or done <= stay.done:
            return None
        rest = (1.0 - done) * (now - stay.since) / (done - stay.done)
        return rest if rest >= LEFT * cost else None


def deal(devices: int, claims: Sequence[Mapping[int, int]]) -> list[int]:
    """Deal devices to trials: to each in turn the fewest that it takes, and if none is left out, the rest.

    The rest goes to whichever has the fewest processes, step by step; among equals to the first.

    Args:
        devices: How many there are.
        claims: Of each trial, the numbers of processes that it may have to the devices that these take, ascending.

    Returns:
        The processes of each trial; 0 where it has to wait.
    """
    shares, left = [0] * len(claims), devices
    for place, own in enumerate(claims):
        least = min(own)
        if own[least] > left:
            return shares  # those behind it wait as well, as they came later
        shares[place], left = least, left - own[least]
    while True:
        steps = []
        for place, own in enumerate(claims):
            more = min((world for world in own if world > shares[place]), default=None)
            if more is not None and own[more] - own[shares[place]] <= left:
                steps.append((shares[place], place, more))
        if not steps:
            return shares
        now, place, more = min(steps)
        left -= claims[place][more] - claims[place][now]
        shares[place] = more


def claim(trial: Trial, there: int) -> dict[int, int]:
    """The numbers of processes that a trial may have, to the devices that these take of those that are there.

    Of a CPU that is a core for each thread. The smallest number may be short of cores, as it is without a range.
    """
    each = 1 if trial.kind == "gpu" else trial.threads
    least, *more = trial.sizes or (trial.world,)
    fewest = least if trial.kind == "gpu" else min(least * each, there)
    return {least: fewest} | {world: world * each for world in more if world * each <= there}


def as_it_is(run: TrialProcesses) -> dict[int, int]:
    """The claim of a trial that runs and keeps what it has."""
    return {run.trial.world: len(run.leases)}


def share_done(trial: Trial) -> float:
    """How much of a trial is done, 0 to 1, by the last row of its record."""
    row = last_row(trial.path / "metrics.jsonl")
    parts = [(number(row.get("epoch")), trial.epochs), (number(row.get("step")), trial.max_steps)]
    return max((done / whole for done, whole in parts if isinstance(done, int | float) and whole), default=0.0)
