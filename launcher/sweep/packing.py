"""Several trials on a device: which share of it each takes, and what keeps them from taking each other's memory.

A trial may allocate its share of a GPU's memory and no more, so that one that needs more fails alone, with its own
error; it is then tried again with the device for itself. Processes on a CPU share the machine's memory: there a trial
waits, as long as others run, while less is free than the largest so far has taken.
"""

import importlib
import os
import pickle
import signal
from typing import Any

from launcher.core.errors import OUT_OF_MEMORY
from launcher.core.files import number, read_json
from launcher.distributed.devices import MEMORY_SHARE
from launcher.sweep.fork_server import CONTEXT, start_process
from launcher.sweep.trial_processes import TrialProcesses
from launcher.sweep.trials import Trial

MOST = 16  # trials on a device by `auto`: more of them wait for its processors rather than for its memory
MB = 2**20


class Packing:
    """The shares of devices that trials get.

    Args:
        per_device: How many trials share a device; auto: as many as its memory has room for.
    """

    def __init__(self, per_device: int | str) -> None:
        self.per_device = per_device
        self._alone: set[int] = set()  # trials that get devices for themselves, by index
        self._counted: dict[str, float] = {}
        self._largest = 0.0  # MB of memory that a process of a trial has taken so far

    def share_of(self, trial: Trial) -> float:
        """The share of each of its devices that a trial takes, above 0, at most 1."""
        if trial.index in self._alone or self.per_device == 1 or (self.per_device == "auto" and trial.kind == "cpu"):
            return 1.0
        if isinstance(self.per_device, int):
            return 1 / self.per_device
        settings = pickle.loads(trial.packed)[0]
        key = repr((sorted(memory_settings(settings).items()), trial.world))
        if key not in self._counted:
            self._counted[key] = _counted_share(trial)
        return self._counted[key]

    def has_room(self, trial: Trial, others: int) -> bool:
        """Whether the machine's memory has room for a trial beside others that run."""
        if self.per_device == 1 or not others or trial.kind != "cpu":
            return True
        import psutil

        return psutil.virtual_memory().available > self._largest * trial.world * MB

    def note_end(self, trial: Trial) -> None:
        """Learn how much memory a trial has taken."""
        if self.per_device != 1:
            taken = number(read_json(trial.path / "summary.json").get("peak_memory_mb"))
            self._largest = max(self._largest, taken if isinstance(taken, float | int) else 0.0)

    def wants_alone(self, run: TrialProcesses) -> bool:
        """Whether a trial that failed did so for lack of memory, beside others: from now on it has its devices alone.

        The system kills a process by SIGKILL where the machine has no more memory.
        """
        if all(lease.share >= 1 for lease in run.leases) or run.killed:
            return False
        if not OUT_OF_MEMORY.search(run.printed) and -signal.SIGKILL not in run.statuses:
            return False
        self._alone.add(run.trial.index)
        return True


def environment(share: float) -> dict[str, str]:
    """What a trial is told of its share."""
    return {MEMORY_SHARE: f"{share:.6f}"} if share < 1 else {}


def memory_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings by which the memory of a trial can differ: numbers with a fraction, seeds and names do not count."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= memory_settings(value, f"{prefix}{key}.")
        elif (
            not isinstance(value, float)
            and f"{prefix}{key}" != "seed"
            and not prefix.startswith(("wandb.", "pruning."))
        ):
            found[prefix + key] = value
    return found


def _counted_share(trial: Trial) -> float:
    """The share of a GPU's memory that a trial takes by the count of check=true, made in a process that ends."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    counting = start_process(_send_share, sender, trial.packed, trial.world, os.environ.get("CUDA_VISIBLE_DEVICES"))
    sender.close()
    try:
        share = float(receiver.recv())
    except EOFError:  # it says on the terminal why
        share = 1.0
    counting.join()
    return min(1.0, max(share, 1 / MOST))


def _send_share(sender: Any, packed: bytes, world: int, visible: str | None) -> None:
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    # What builds a run stands above this room, which names it and does not import it.
    sender.send(importlib.import_module("launcher.check").memory_share(*pickle.loads(packed), world))
