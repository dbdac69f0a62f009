"""The process of a tracker: started beside training, deaf to the signals that a trainer hears."""

import signal
import subprocess
from collections.abc import Mapping

from launcher.core.processes import module_command


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
