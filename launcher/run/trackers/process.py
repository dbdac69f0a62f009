"""The process of a tracker: started beside training, deaf to the signals that a trainer hears."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import BinaryIO

from launcher.core.processes import module_command

_warm: set[str] = set()


class Forked:
    """A process forked from this one, of which the same can be asked as of a `subprocess.Popen`."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        inputs, outputs = os.pipe(), os.pipe()
        self.pid, self.returncode = os.fork(), None  # type: int, int | None
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(inputs[0], 0)
                os.dup2(outputs[1], 1)
                for handle in (*inputs, *outputs):
                    os.close(handle)
                os.environ.clear()
                os.environ.update(environment)
                sys.argv = [module]
                importlib.import_module(module).main()
            finally:
                os._exit(1)  # `main` ends the process itself
        os.close(inputs[0])
        os.close(outputs[1])
        self.stdin: BinaryIO = os.fdopen(inputs[1], "wb")
        self.stdout: BinaryIO = os.fdopen(outputs[0], "rb")

    def wait(self) -> None:
        """Until it has ended."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """End it, unless it has been waited for."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def warm_up(module: str, *others: str) -> None:
    """Import a module of a tracker, and others that it may need: from now on `begin` forks its process from this one.

    For a process that shows one run after the other, and has no threads but those that wait for trackers.
    """
    importlib.import_module(module)
    for name in others:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _warm.add(module)


def begin(module: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes] | Forked":
    """As `start`, without words and without a place for errors; at once where the module is warm."""
    if module in _warm:
        return Forked(module, environment)
    return start(module, errors=subprocess.DEVNULL, environment=environment)


def start(
    module: str, *words: str, errors: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run a module of this package, whose `main` calls `ignore_signals` first, with pipes for its input and output.

    In a session of its own: Ctrl-C in the terminal is for the trainer, which then tells its trackers to end.

    Args:
        module: Its full name.
        words: What it finds in sys.argv[1:].
        errors: Where its standard error goes: subprocess.STDOUT or subprocess.DEVNULL.
        environment: Its variables; None: those of this process.
    """
    from launcher.distributed.children import sheltered  # the process itself, which is waited for, needs none of it

    with sheltered():
        return subprocess.Popen(
            module_command(module, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=environment,
        )


def ignore_signals() -> None:
    """Leave it to the trainer to decide when to end: a cluster signals every process of a step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
