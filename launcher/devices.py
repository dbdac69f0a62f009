"""The devices of this machine, lent to one run at a time: a lock file for each, which every grid of a user respects."""

import contextlib
import fcntl
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, and of Windows for its Linux


def may_have_gpus() -> bool:
    """Whether it is worth asking torch for GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and any(map(os.path.exists, DRIVERS))


def visible_gpus() -> dict[str, str]:
    """Ask torch for the GPUs. It starts the driver: only for a process that ends afterwards.

    Returns:
        What CUDA_VISIBLE_DEVICES calls each GPU, to the name of its lock: the same whatever the GPU was called by.
    """
    import torch

    count = torch.cuda.device_count()
    hidden = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
    names = [name.strip() for name in os.environ.get(hidden, "").split(",") if name.strip()]
    names = names[:count] if names else [str(number) for number in range(count)]
    locks = {}
    for number, name in enumerate(names):
        uuid = getattr(torch.cuda.get_device_properties(number), "uuid", name)
        locks[name] = name if name.startswith("MIG") else str(uuid)
    return locks


def cores() -> list[int]:
    """Numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@dataclass(eq=False)
class Lease:
    """A device that this process holds the lock of.

    Sent to another process, it takes the lock along: the device is free again when it is given back, or when all that
    hold it have ended, in whatever way.
    """

    device: str
    handle: int
    _close: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._close = weakref.finalize(self, _close, self.handle)

    def give_back(self) -> None:
        """Free the device, whoever else holds the lease."""
        with contextlib.suppress(OSError):
            fcntl.flock(self.handle, fcntl.LOCK_UN)
        self._close()

    def __reduce__(self) -> Any:
        return _receive, (self.device, reduction.DupFd(self.handle))


def _receive(device: str, duplicate: Any) -> Lease:
    lease = Lease(device, duplicate.detach())
    lease._close.detach()  # for as long as this process lives, and those forked from it
    return lease


def _close(handle: int) -> None:
    with contextlib.suppress(OSError):
        os.close(handle)


class Pool:
    """Devices of one kind, and who has them.

    Args:
        kind: gpu or cpu.
        locks: Name of each device to the name of its lock.
    """

    def __init__(self, kind: str, locks: dict[str, str]) -> None:
        self.kind, self.locks = kind, locks
        self.directory = Path(tempfile.gettempdir()) / f"launcher-devices-{os.getuid()}"
        self.lent: set[str] = set()

    def __len__(self) -> int:
        return len(self.locks)

    def take(self, count: int) -> list[Lease] | None:
        """Take `count` free devices, or none where another grid has too many of them."""
        leases: list[Lease] = []
        for device in self.locks:
            if device not in self.lent and len(leases) < count and (lease := self._lock(device)):
                leases.append(lease)
        if len(leases) < count:
            for lease in leases:  # two grids that each hold half of what they need would wait for ever
                lease.give_back()
            return None
        self.lent |= {lease.device for lease in leases}
        return leases

    def give_back(self, leases: list[Lease]) -> None:
        """Free devices that were taken."""
        for lease in leases:
            lease.give_back()
            self.lent.discard(lease.device)

    def holders(self) -> list[str]:
        """Processes of others that hold devices of this pool: `device: pid`."""
        found = []
        for device in self.locks:
            if device not in self.lent:
                lease = self._lock(device)
                if lease is None:
                    pid = self._file(device).read_text().strip() or "unknown"
                    found.append(f"{device}: pid {pid}")
                else:
                    lease.give_back()
        return found

    def _file(self, device: str) -> Path:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in self.locks[device])
        return self.directory / f"{self.kind}-{safe}"

    def _lock(self, device: str) -> Lease | None:
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(self._file(device), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"The lock of device {device} cannot be made: {self.directory}: {error.strerror}. Set TMPDIR to a "
                "directory that you can write in."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        return Lease(device, handle)


def choose(asked: str | int | list[Any], there: dict[str, str], kind: str) -> dict[str, str]:
    """The devices that a grid may use.

    Args:
        asked: auto (all there are), how many, or their names.
        there: Name to lock of those that are there.
        kind: gpu or cpu; slots beyond the cores of a CPU machine share them.

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
    if isinstance(asked, list) and asked and len({str(name) for name in asked}) == len(asked):
        unknown = [str(name) for name in asked if str(name) not in there]
        if unknown:
            raise ConfigError(
                f"hydra.launcher.devices={asked}: there is no {kind} {', '.join(unknown)}, but {', '.join(there)}."
            )
        return {str(name): there[str(name)] for name in asked}
    raise ConfigError(
        f"hydra.launcher.devices={asked}: must be auto, how many, or a list of different ones such as [0,2]."
    )
