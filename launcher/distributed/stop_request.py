"""When a run stops before its end: signals, a vanished launcher, a time limit."""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import launcher
from launcher.config.accelerate_flags import parent_command
from launcher.core.processes import seconds_since_start
from launcher.distributed.ranks import is_launcher

log = logging.getLogger("launcher")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LEFT_ALONE = (signal.SIGINT, signal.SIGHUP)  # where they were ignored at the start: nohup, and `&` in a script, do that
LONG = 2.0  # seconds until a request is heeded, from which on a person should know of them
GRACE = 0.5  # seconds in which a repeated signal is the echo of the first (launchers and shells both forward)


def leave(status: int, saving: float = 300.0) -> NoReturn:
    """End the process at once: threads may wait for a peer that is gone. A checkpoint that is being written needs none.

    It is waited for, until it has made no progress for `saving` seconds.
    """
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            _until_written(thread, saving)
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # the cursor, which the progress bar hides
    os._exit(status)


def _until_written(thread: threading.Thread, patience: float) -> None:
    """Wait for a thread for as long as it reads or writes: a large checkpoint takes minutes."""
    moved, since = "", time.monotonic()
    while thread.is_alive() and time.monotonic() - since < patience:
        thread.join(min(0.1, patience))
        with contextlib.suppress(OSError):  # a system that does not tell: `patience` is all there is
            now = Path(f"/proc/self/task/{thread.native_id}/io").read_text()
            if now != moved:
                moved, since = now, time.monotonic()


def watch_launcher() -> Callable[[], bool]:
    """A question: whether the launcher that started this process is there no more.

    That is torchrun, `accelerate launch`, or the process that executes a sweep. Anything else may end while a run goes
    on: a shell from which its user has logged out, cron, ssh, make.
    """
    executor = multiprocessing.parent_process()
    if executor is not None and "LAUNCHER_DEVICES" in os.environ:
        return lambda: not executor.is_alive()
    parent = os.getppid()
    if not is_launcher(parent_command()):
        return lambda: False
    return lambda: os.getppid() != parent


class StopRequest:
    """Whether this process was asked to stop, and why.

    A thread reads the signals, because Python's own handlers do not run while the main thread waits inside a
    collective. A second signal, more than half a second after the first, ends the process at once.

    Args:
        max_time: Seconds since the start of the process after which it shall have stopped; None: no limit.
        reserve: Seconds that stopping takes, which max_time leaves for it; raised when a save took longer.
    """

    def __init__(self, max_time: float | None, reserve: float = 0.0) -> None:
        self.reason: str | None = None  # what asked to stop
        self.reserve = reserve
        self.heeded_in: Callable[[], float] = lambda: 0.0  # seconds until the loop of the run heeds a request
        self._deadline = None if max_time is None else time.monotonic() + max_time - seconds_since_start()
        self._launcher_is_gone = watch_launcher()
        self._first = 0.0
        self._closed = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before: dict[int, Any] = {}  # what was to happen at a signal
        # They stay to the end of the process: a late echo of the signal must not kill it while it says goodbye.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if not (number in LEFT_ALONE and signal.getsignal(number) == signal.SIG_IGN):
                # No default action: the thread does the work.
                self._before[number] = signal.signal(number, lambda number, frame: None)
        if launcher.asked_early:
            self.reason = signal.Signals(launcher.asked_early[0]).name
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def __bool__(self) -> bool:
        return self.reason is not None

    def seconds(self) -> float:
        """Seconds from a request until the run has stopped with everything saved, as far as is known."""
        return self.reserve + self.heeded_in()

    def close(self) -> None:
        """Let signals do again what they did before: for a process that goes on, with a program of others."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._before, self._closed = {}, True

    def _watch(self) -> None:
        self._reader.settimeout(1.0)
        while not self._closed:
            try:
                received = self._reader.recv(64)
            except TimeoutError:
                received = b""
            for number in received:
                if number in SIGNALS:
                    self._signalled(signal.Signals(number).name)
            if self.reason is None and self._launcher_is_gone():
                self.reason = "the launching process vanished"
            if self._deadline is not None and time.monotonic() + self.seconds() >= self._deadline:
                self.reason = self.reason or "max_time"

    def _signalled(self, name: str) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._first = name, now
            if (update := self.heeded_in()) > LONG:
                log.info("stopping   %s: after an update, which takes about %.0f s, and a save", name, update)
        elif self._first and now - self._first > GRACE:
            with contextlib.suppress(Exception):  # the terminal may be gone; the main thread may use the list
                for child in multiprocessing.active_children():
                    child.kill()
                os.write(2, f"{name} again: ending at once, without saving\n".encode())
            leave(128 + signal.Signals[name].value, saving=0)
        elif not self._first:
            self._first = now
