"""What sweeps wait for: each tells the others of this machine how many devices its next trial lacks."""

import contextlib
import os
from pathlib import Path

from launcher.core.files import read_json
from launcher.core.locks import Locked, is_locked, take_lock
from launcher.sweep.leases import Pool


class Wish:
    """What this sweep waits for, of the devices of a pool: a file beside their locks, locked for as long as it holds.

    One whose process was killed counts no more, as nobody holds its lock.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.count = pool, 0
        self._file = pool.directory / f"{pool.kind}.waits-{os.getpid()}"
        self._handle: int | None = None

    def tell(self, count: int) -> None:
        """Say for how many devices this sweep waits; 0: for none."""
        if count == self.count:
            return
        if self._handle is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._handle)
        self.count, self._handle = 0, None
        if count:
            with contextlib.suppress(Locked, OSError):  # somebody is looking: the next time
                self.pool.directory.mkdir(mode=0o700, exist_ok=True)
                about = {"pid": os.getpid(), "count": count, "locks": sorted(self.pool.locks.values())}
                self._handle = take_lock(self._file, about)
                self.count = count

    def of_others(self) -> list[int]:
        """For how many devices each of the other sweeps waits that may have devices of this pool."""
        found, own = [], set(self.pool.locks.values())
        for file in sorted(self.pool.directory.glob(f"{self.pool.kind}.waits-*")):
            if file != self._file and (count := _told(file, own)):
                found.append(count)
        return found


def _told(file: Path, locks: set[str]) -> int:
    if not file.exists() or not is_locked(file):
        file.unlink(missing_ok=True)
        return 0
    known = read_json(file)
    return int(known.get("count", 0)) if locks & set(known.get("locks", ())) else 0
