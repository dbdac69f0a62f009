"""Every private name of Python and W&B that the launcher takes, why, and what would be lost without it.

tests/core/test_compat_python.py notices where one goes. Nothing here imports torch.
"""

import atexit
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any


def run_exit_functions() -> None:
    """Run what was registered with atexit, before os._exit, by which a rank of several ends.

    Without this temporary directories would stay, and Accelerate's and W&B's own endings would be left out.
    """
    atexit._run_exitfuncs()


def stop_fork_server() -> None:
    """End the process that others are forked from, where there is one, and what cleans up after it.

    Left alone it would stay, with torch in its memory, until every process that was forked from it has ended.
    """
    from multiprocessing import forkserver, resource_tracker

    server: Any = forkserver._forkserver
    if (pid := getattr(server, "_forkserver_pid", None)) is not None:
        os.kill(pid, signal.SIGKILL)  # it does not take another
        server._stop()
    tracker: Any = resource_tracker._resource_tracker
    tracker._stop()


def wandb_settings(trainer: int) -> dict[str, Any]:
    """Settings of W&B that begin with x_, which it may change or drop in any release, for the process that trains.

    Those that it does not know are to be left out: then system metrics are those of W&B's own process, and a kill takes
    up to 15 s of rows, which the next start shows again.
    """
    return {"x_stats_pid": trainer, "x_transaction_log_flush_interval": 2.0}


def on_wandb_core(started: Callable[[subprocess.Popen[Any]], None]) -> None:
    """Have a function called with each wandb-core that W&B starts, by a `subprocess.Popen` in place of Python's own.

    W&B does not tell the process id of its service. Without it nobody could kill one that hangs at a server, nor make
    it nice before it takes a core that trains.
    """

    class Popen(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if "wandb-core" in str(self.args):
                started(self)

    subprocess.Popen = Popen  # type: ignore[misc]


def main_module() -> dict[str, Any]:
    """What the main module of this process is, for `import_main` in another; empty where it is none of a file.

    multiprocessing knows how to import the main module of a parent, but has no public name for it, and its fork server
    forgets to do so (https://github.com/python/cpython/issues/126631).
    """
    from multiprocessing import spawn

    found = spawn.get_preparation_data("program")
    kept = ("init_main_from_name", "init_main_from_path", "sys_argv", "sys_path", "dir", "orig_dir")
    return {key: found[key] for key in kept if key in found}


def import_main(found: dict[str, Any]) -> None:
    """Import the main module of another process under the name __mp_main__, as its children would."""
    from multiprocessing import spawn

    spawn.prepare(found)
