"""Keeps one rank of a trial on a node of a Ray cluster: `python keeper.py COMMAND...`, started by the rank's actor.

Each line that comes in is the number of a signal for the rank. What goes out is the rank's exit status. Ray kills the
children of an actor that ends, without a question; the rank is a grandchild, and is asked to save and end instead.
Needs the standard library alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

PATIENCE = 300.0  # seconds in which a rank whose actor is gone saves and ends
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def main() -> None:
    """Start the rank, forward what comes in, and say how it ended. Its output goes where standard error does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # Ray's processes block and ignore some, and children inherit
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    rank = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        start_new_session=True,
        preexec_fn=_end_with_parent(os.getpid()),  # no thread runs yet
    )
    threading.Thread(target=_forward, args=(rank,), daemon=True).start()
    status = rank.wait()
    with contextlib.suppress(OSError):
        os.write(1, b"%d\n" % status)
    os._exit(0)


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child calls first: the kernel sends it SIGTERM when its parent dies."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def end_with_parent() -> None:
        prctl(1, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return end_with_parent


def _forward(rank: "subprocess.Popen[bytes]") -> None:
    """Forward signals until the actor is gone, then end the rank."""
    for line in iter(sys.stdin.buffer.readline, b""):
        rank.send_signal(int(line))
    rank.terminate()
    try:
        rank.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        rank.kill()


if __name__ == "__main__":
    main()
