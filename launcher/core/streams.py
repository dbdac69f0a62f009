"""Standard output and error that cannot fail a program."""

import contextlib
import io
import os
import select
import sys
from typing import Any


class _Lasting(io.RawIOBase):
    """A standard stream that takes everything, also what cannot be written: `head` has seen enough, a disk is full.

    Args:
        handle: Its number, 1 or 2.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.name = {1: "<stdout>", 2: "<stderr>"}[handle]

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return os.write(self._handle, data)
        except BlockingIOError:  # a terminal that another program has left in that mode
            select.select([], [self._handle], [])
            return 0
        except OSError:
            return len(data)


def keep_streams() -> None:
    """Let no program fail, or print a traceback, because what it says cannot be written; files have all that counts.

    Streams that are closed become /dev/null: else the first file that is opened would get the number of one.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, handle in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError):  # of a program that has put another stream there
            if before is None or before.fileno() == handle:
                if before is not None:
                    before.flush()
                kept = io.BufferedWriter(_Lasting(handle))
                encoding = getattr(before, "encoding", None)
                setattr(sys, name, io.TextIOWrapper(kept, encoding, "backslashreplace", line_buffering=True))
