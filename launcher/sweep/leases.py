"""Devices of this machine, lent to trials: a lock file for each, which every sweep of a user respects.

A device is lent to one trial at a time, or in parts to several of one sweep.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.core.locks import Locked, take_lock
from launcher.distributed import gpus

LOOK = 30.0  # seconds between two looks at what computes on GPUs that are not lent
WHOLE = 1 + 1e-9  # of a device, where three thirds of it have been added up


@dataclass
class Lease:
    """A device that this process holds the lock of.

    Sent to another process, it takes the lock along: the device is free again when it is given back, or when all that
    hold it have ended, in whatever way.
    """

    device: str
    handle: int
    share: float = 1.0  # of the device

    def give_back(self) -> None:
        """Free the device, whoever else holds the lease; to be called once."""
        fcntl.flock(self.handle, fcntl.LOCK_UN)
        os.close(self.handle)

    def __reduce__(self) -> Any:
        return _receive, (self.device, reduction.DupFd(self.handle), self.share)


def _receive(device: str, duplicate: Any, share: float) -> Lease:
    return Lease(device, duplicate.detach(), share)


class Pool:
    """Devices of one kind, gpu or cpu, and who has them; `locks` is the name of each to the name of its lock.

    `computing` tells which locks are those of devices that processes compute on, and which processes. A device that is
    not lent and is computed on is another's, and not taken; without `computing` it is.
    """

    def __init__(
        self, kind: str, locks: dict[str, str], computing: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        self.kind, self.locks, self.computing = kind, locks, computing
        self._foreign: dict[str, str] = {}
        self._looked: float | None = None
        self.directory = Path(tempfile.gettempdir()) / f"launcher-devices-{os.getuid()}"
        self._lent: dict[str, list[Lease]] = {}  # by device, those of this pool alone

    def __len__(self) -> int:
        return len(self.locks)

    @property
    def lent(self) -> Set[str]:
        """The devices of which this pool has lent at least a part."""
        return self._lent.keys()

    def used(self, device: str) -> float:
        """The share of a device that this pool has lent."""
        return sum(lease.share for lease in self._lent.get(device, ()))

    def take(self, count: int, share: float = 1.0) -> list[Lease] | None:
        """Take a share of each of `count` devices, the emptiest first, or none where too few have it."""
        leases = self._lock_free(count, share)
        for lease in leases:
            self._lent.setdefault(lease.device, []).append(lease)
        if len(leases) < count:
            self.give_back(leases)  # two sweeps that each hold half of what they need would wait for ever
            return None
        return leases

    def has(self, count: int, share: float = 1.0) -> bool:
        """Whether so many devices have this share free."""
        if (leases := self.take(count, share)) is None:
            return False
        self.give_back(leases)
        return True

    def free(self) -> int:
        """How many devices could be taken now."""
        leases = self._lock_free(len(self))
        for lease in leases:
            lease.give_back()
        return len(leases)

    def give_back(self, leases: list[Lease]) -> None:
        """Free devices, or shares of them, that were taken."""
        for lease in leases:
            others = self._lent[lease.device]
            others.remove(lease)
            if others:
                os.close(lease.handle)
                continue
            del self._lent[lease.device]
            lease.give_back()

    def holders(self) -> list[str]:
        """Processes of others that hold devices of this pool: `device: pid`."""
        found = []
        for device in self.locks:
            if device in self.lent:
                continue
            lease = self._lock(device)
            if lease is None:
                found.append(f"{device}: pid {read_json(self._file(device)).get('pid', 'unknown')}")
                continue
            lease.give_back()
            if device in self.foreign():
                found.append(f"{device}: {self.foreign()[device]}")
        return found

    def foreign(self) -> dict[str, str]:
        """Devices of this pool that others compute on, without its lock, to these in words; at most LOOK seconds old.

        What is lent is ours: it may compute there, and need not be gone from the next look when it is given back.
        """
        if self.computing is not None and (self._looked is None or time.monotonic() - self._looked > LOOK):
            found = self.computing()
            self._foreign = {
                device: found[lock] for device, lock in self.locks.items() if device not in self.lent and lock in found
            }
            self._looked = time.monotonic()
        return self._foreign

    def _file(self, device: str) -> Path:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in self.locks[device])
        return self.directory / f"{self.kind}-{safe}"

    def _lock_free(self, most: int, share: float = 1.0) -> list[Lease]:
        """Lock devices of which a share is free, the emptiest first, at most so many."""
        leases: list[Lease] = []
        for device in sorted(self.locks, key=self.used):
            if len(leases) == most:
                break
            if device in self.lent:
                if self.used(device) + share <= WHOLE:  # one lock under all who share it, free with the last of them
                    leases.append(Lease(device, os.dup(self._lent[device][0].handle), share))
            elif device not in self.foreign() and (lease := self._lock(device)):
                lease.share = share
                leases.append(lease)
        return leases

    def _lock(self, device: str) -> Lease | None:
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            return Lease(device, take_lock(self._file(device), {"pid": os.getpid()}))
        except Locked:
            return None
        except OSError as error:
            raise ConfigError(
                f"The lock of device {device} cannot be made: {self.directory}: {error.strerror}. Set TMPDIR to a "
                "directory that you can write in."
            ) from error


def choose(asked: str | int | list[Any], there: dict[str, str], kind: str) -> dict[str, str]:
    """The devices that a sweep may use, of those that are `there` (name to lock).

    `asked` is auto (all there are), how many, or their names. Slots beyond the cores of a CPU machine share them.

    Raises:
        ConfigError: It asks for devices that are not there.
    """
    if asked == "auto":
        return dict(there)
    if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1:
        names = list(there)[:asked]
        names += [f"{slot}+" for slot in range(len(names), asked)] if kind == "cpu" else []
        if len(names) < asked:
            raise ConfigError(
                f"hydra.launcher.devices={asked}: this machine has {len(there)} GPUs. Use at most so many, or auto."
            )
        return {name: there.get(name, name) for name in names}
    if isinstance(asked, list) and asked:
        named = {str(name): _named(str(name), there) for name in asked}
        if unknown := [name for name, device in named.items() if device is None]:
            raise ConfigError(
                f"hydra.launcher.devices={asked}: there is no {kind} {', '.join(unknown)}, but {', '.join(there)}."
            )
        if len(set(named.values())) == len(asked):
            return {device: there[device] for device in named.values() if device is not None}
    raise ConfigError(
        f"hydra.launcher.devices={asked}: must be auto, how many, or a list of different ones such as [0,2]."
    )


def _named(name: str, there: Mapping[str, str]) -> str | None:
    """The device that a person means: by its name, or by how its UUID begins."""
    if name in there:
        return name
    those = [device for device, uuid in there.items() if name.startswith(("GPU-", "MIG-")) and uuid.startswith(name)]
    return those[0] if len(those) == 1 else None


def open_pool(
    kind: str, there: dict[str, str], asked: Any, world: int, listed: Sequence[gpus.Gpu] | None
) -> tuple[Pool, list[str]]:
    """The devices of a kind that a sweep may use; what others compute on is left to them, unless a person names it.

    See `choose` for `there` and `asked`; `world` is the number of a trial's processes, `listed` what `gpus.look` found.

    Returns:
        Those, and lines on what a person should know of them.

    Raises:
        ConfigError: It does not have those that were asked for, or they do not fit the processes of a trial.
    """
    if kind == "cpu" or listed is None:
        return Pool(kind, choose(asked, there, kind)), []
    notes = [
        f"gpu {gpu.index} is in MIG mode and has no slice: nothing can run on it"
        for gpu in listed
        if gpu.mig and not gpu.slices
    ]
    used = gpus.computing(listed)
    if isinstance(asked, list):
        pool = Pool(kind, choose(asked, there, kind))
        in_use = {device: used[lock] for device, lock in pool.locks.items() if lock in used}
        words = "it is taken all the same, as hydra.launcher.devices names it"
    else:
        there = dict(sorted(there.items(), key=lambda device: device[1] in used))  # of a number the free ones first
        pool = Pool(kind, choose(asked, there, kind), lambda: gpus.computing(gpus.look() or []))
        in_use = pool.foreign()
        words = "it is taken when that has ended, or at once where hydra.launcher.devices names it"
    if world > 1 and any(lock.startswith("MIG-") for lock in pool.locks.values()):
        raise ConfigError(
            f"hydra.launcher.devices={asked}: {world} processes per trial, and there are MIG slices, of which CUDA "
            "shows a process one. Use hydra.launcher.devices_per_run=1, or name whole GPUs."
        )
    return pool, [*notes, *(f"gpu {device} is in use by {who}: {words}" for device, who in in_use.items())]
