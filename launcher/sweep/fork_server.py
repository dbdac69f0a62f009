"""The process that all processes of a sweep are forked from: it has imported what they need."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from launcher.distributed import children

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = "launcher.sweep.preload"
ATTEMPTS = 6


def warm_up() -> None:
    """Start it, unless it is there; it imports torch while this process goes on."""
    children.start_fork_server([PRELOAD])


def start_process(target: Callable[..., None], *args: Any) -> Any:
    """Fork a process, and start the server anew where that was killed.

    It can die between two lines of `start`: its pipes close before it can be waited for.
    """
    for attempt in range(1, ATTEMPTS + 1):
        warm_up()
        process = CONTEXT.Process(target=target, args=args)
        try:
            process.start()
            break
        except (OSError, EOFError):
            if attempt == ATTEMPTS:
                raise
            time.sleep(0.1)
    return process
