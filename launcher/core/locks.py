"""Locks between processes, also of other machines where the file system has them: flock of a file.

The kernel lets go of one when the process that holds it ends, in whatever way.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Locked(OSError):
    """Another process holds the lock; the message is what that wrote about itself."""


def take_lock(file: Path, about: Mapping[str, Any]) -> int:
    """Lock a file, which need not be there, until the returned handle is closed; others are told `about` the holder.

    Raises:
        Locked: Another process has it.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 1000).decode(errors="replace").strip()
        os.close(handle)
        raise Locked(holder or "an unknown process") from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(about).encode(), 0)
    return handle


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock of a file that is there, or would if one may not look."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock of a file, which need not be there, and hold it for a while."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
