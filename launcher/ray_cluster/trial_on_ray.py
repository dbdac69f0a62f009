"""A trial on a Ray cluster: how its ranks start, and how they ended."""

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.ray_cluster.placement import Slot
from launcher.ray_cluster.rank_on_node import LOST
from launcher.sweep.failure import OUTPUT, how_it_ended, tail
from launcher.sweep.trials import Trial


@dataclass(frozen=True)
class Start:
    """What the start of every trial of a sweep has in common."""

    code: str  # the directory that has the package launcher
    place: str  # working directory
    environment: Mapping[str, str]


class TrialOnRay:
    """One attempt at a trial: an actor for each rank, in a slot of its own.

    Attributes:
        waited: What `ray.wait` is to wait for, of this trial.
        started: When it was begun, in seconds of time.monotonic.
        asked: When it was asked to stop.
        first_failure: When the first rank that failed was seen to have ended.
        hosts: The nodes that it is on; empty until they have answered.
        word: How its start is called, until a person was told.
    """

    def __init__(self, trial: Trial, slot: Slot, task: Path, start: Start, word: str) -> None:
        self.trial, self.slot, self.task, self.start = trial, slot, task, start
        self.actors = slot.start_actors()
        self.hosts, self.word = list[str](), word
        self.killed = ""  # why it was
        self.asked: float | None = None
        self.first_failure: float | None = None
        self.started = time.monotonic()
        self.ended: list[int] = []  # the ranks that have, in that order
        self._offsets: dict[Path, int] = {}  # of each output, where that of this attempt begins
        self.statuses: dict[int, int | None] = {}  # of those that have ended; None: its actor or its node died
        self.trouble = ""  # what a node said that could not start it
        places = [str(trial.path), str(task), start.place, f"{start.code}/launcher/trial.py"]
        self._looking = [actor.look.remote(places) for actor in self.actors]
        self._running: dict[Any, int] = {}  # the call that lasts as long as a rank, to its number

    @property
    def waited(self) -> list[Any]:
        """See the class."""
        return [*self._looking, *self._running]

    def note(self, ready: Sequence[Any], now: float) -> bool:
        """Note what of `waited` is there, and say whether all ranks have ended; they start when all nodes answered."""
        if self._looking and set(self._looking) <= set(ready):
            self._start_ranks()
        for call in [call for call in self._running if call in ready]:
            rank = self._running.pop(call)
            self.statuses[rank] = self._status_of(call)
            self.ended.append(rank)
            if self.statuses[rank] != 0 and self.first_failure is None:
                self.first_failure = now
        return not self.waited

    def _start_ranks(self) -> None:
        """Start the ranks, those of a node one after the other, or end all where a node cannot."""
        import ray

        looking, self._looking = self._looking, []
        try:
            found = ray.get(looking)
        except ray.exceptions.RayError:  # an actor or its node died before anything began
            self._end_all(None)
            return
        if missing := next((seen for seen in found if seen["missing"]), None):
            self.trouble = f"node {_name(missing)} does not see {missing['missing'][0]}"
            self._end_all(2)
            return
        nodes = list(dict.fromkeys(seen["node"] for seen in found))
        order = sorted(range(len(found)), key=lambda number: nodes.index(found[number]["node"]))
        self.actors, found = [self.actors[number] for number in order], [found[number] for number in order]
        self.hosts = [_name(seen) for seen in {seen["node"]: seen for seen in found}.values()]
        keeper = f"{self.start.code}/launcher/ray_cluster/keeper.py"
        command = [f"{self.start.code}/launcher/trial.py", "--task", str(self.task)]
        for rank, (actor, seen) in enumerate(zip(self.actors, found, strict=True)):
            # Two machines that append to one file of NFS overwrite each other's lines.
            number = nodes.index(seen["node"])
            output = self.trial.path / (OUTPUT if number == 0 else f"output.node{number}.log")
            self._offsets.setdefault(output, output.stat().st_size if output.exists() else 0)
            environment = {**self.start.environment, **environment_of_rank(rank, found, self.trial.kind)}
            call = actor.run.remote(keeper, command, environment, self.start.place, str(output))
            self._running[call] = rank

    def _status_of(self, call: Any) -> int | None:
        """The exit status of a rank that has ended; None where its actor died, and takes what is left of it along."""
        import ray

        try:
            return int(ray.get(call))
        except ray.exceptions.RayTaskError as error:
            self.trouble = self.trouble or str(error.cause)
            return 1
        except ray.exceptions.RayError:
            return None

    def _end_all(self, status: int | None) -> None:
        """Note that all ranks have ended before they began."""
        self.ended = list(range(self.trial.world))
        self.statuses = dict.fromkeys(self.ended, status)

    @property
    def printed(self) -> str:
        """The end of what this attempt has printed."""
        return "".join(tail(output, offset) for output, offset in self._offsets.items())

    @property
    def was_lost(self) -> bool:
        """Whether it ended by no fault of its own: a node or an actor died, or its port or directory was taken."""
        if self.killed or self.trouble:
            return False
        taken = "EADDRINUSE" in self.printed or (2 in self.statuses.values() and "a run is in it" in self.printed)
        return taken or None in self.statuses.values() or LOST in self.statuses.values()

    @property
    def was_shot(self) -> bool:
        """Whether a SIGKILL of somebody else ended a rank."""
        return not self.killed and -signal.SIGKILL in self.statuses.values()

    def went_as_wanted(self, asked: bool) -> bool:
        """Whether all ranks ended well, or, where they were asked to stop, at once by that signal."""
        good = (0, -signal.SIGTERM, 128 + signal.SIGTERM) if asked else (0,)
        return not self.killed and all(status in good for status in self.statuses.values())

    def failure(self) -> str:
        """One line about a failure: why it was killed, else what the first rank that failed said or how it ended."""
        if self.killed or self.trouble:
            return self.killed or self.trouble
        rank = next(rank for rank in self.ended if self.statuses[rank] != 0)
        status = self.statuses[rank]
        if status is None or status == LOST:
            return f"the node of rank {rank} died, or the actor on it"
        return how_it_ended(rank, status, self.printed)

    def ask_to_stop(self, now: float) -> None:
        """Ask all ranks to save and end."""
        self.asked = now
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each rank that is there."""
        for rank, actor in enumerate(self.actors):
            if rank not in self.ended:
                actor.send.remote(int(number))

    def kill(self, why: str) -> None:
        """End all ranks at once."""
        self.killed = self.killed or why
        self.send(signal.SIGKILL)

    def give_back(self) -> None:
        """Let others have its room."""
        self.slot.give_back()


def environment_of_rank(rank: int, found: Sequence[Mapping[str, Any]], kind: str) -> dict[str, str]:
    """Which of the ranks of a trial a process is, and the GPUs of its node that the trial has.

    Args:
        rank: Of the process.
        found: What `RankOnNode.look` said of the node of each rank; those of a node follow each other.
        kind: Devices of the trial, gpu or cpu.
    """
    here = [number for number, seen in enumerate(found) if seen["node"] == found[rank]["node"]]
    own = {"CUDA_VISIBLE_DEVICES": ""}
    if kind == "gpu":
        # All of the trial's on this node, as elsewhere: LOCAL_RANK chooses one, and NCCL sees its neighbours.
        names = {name for number in here for name in found[number]["hiding"]}
        own = {name: ",".join(found[number]["hiding"].get(name, "") for number in here) for name in names}
    own["LAUNCHER_DEVICES"] = own.get("CUDA_VISIBLE_DEVICES") or kind
    if len(found) == 1:
        return own
    return own | {
        "RANK": str(rank),
        "LOCAL_RANK": str(here.index(rank)),
        "WORLD_SIZE": str(len(found)),
        "LOCAL_WORLD_SIZE": str(len(here)),
        "MASTER_ADDR": found[0]["address"],
        "MASTER_PORT": str(found[0]["port"]),
    }


def _name(seen: Mapping[str, Any]) -> str:
    return f"{seen['host']} ({seen['address']})"
