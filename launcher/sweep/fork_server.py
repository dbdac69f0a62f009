"""The process that all processes of a sweep are forked from: it has imported what they need."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from typing import Any

from launcher.core.compat_python import stop_fork_server
from launcher.distributed import children
from launcher.sweep.trials import TRAINING

CONTEXT = multiprocessing.get_context("forkserver")
ATTEMPTS = 6

_wanted: tuple[str, Mapping[str, str]] = (TRAINING.preload, {})  # what `warm_up` was asked for last


def warm_up(module: str = TRAINING.preload, environment: Mapping[str, str] | None = None) -> None:
    """Start it, unless it is there; it imports a module, with more in its environment, while this process goes on.

    One that has imported another module, or in another environment, is ended first.
    """
    global _wanted
    wanted = (module, dict(environment or {}))
    if wanted != _wanted:
        stop_fork_server()
        _wanted = wanted
    children.start_fork_server([module], wanted[1])


def start_process(target: Callable[..., None], *args: Any) -> Any:
    """Fork a process from what `warm_up` has started last, and start that server anew where it was killed.

    It can die between two lines of `start`: its pipes close before it can be waited for.
    """
    for attempt in range(1, ATTEMPTS + 1):
        warm_up(*_wanted)
        process = CONTEXT.Process(target=target, args=args)
        try:
            process.start()
            break
        except (OSError, EOFError):
            if attempt == ATTEMPTS:
                raise
            time.sleep(0.1)
    return process
