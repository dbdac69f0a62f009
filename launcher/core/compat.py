"""What is used of other packages and not part of their public interface: each with why, and what breaks without it.

A test in tests/core/test_compat.py notices when one is gone.
"""

import subprocess
from collections.abc import Callable
from typing import Any


def wandb_settings(trainer: int) -> dict[str, Any]:
    """Settings of W&B that begin with x_, which it may change or drop in any release.

    Those that it does not know are to be left out: then system metrics are those of W&B's own process, and a kill takes
    up to 15 s of rows, which the next start shows again.

    Args:
        trainer: Process id of the process that trains.
    """
    return {"x_stats_pid": trainer, "x_transaction_log_flush_interval": 2.0}


def on_wandb_core(started: Callable[[subprocess.Popen[Any]], None]) -> None:
    """Be told of each wandb-core that W&B starts from now on, by a `subprocess.Popen` in place of Python's own.

    W&B does not tell the process id of its service. Without it nobody could kill one that hangs at a server, nor make
    it nice before it takes a core that trains.

    Args:
        started: Called with the process.
    """

    class Popen(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if "wandb-core" in str(self.args):
                started(self)

    subprocess.Popen = Popen  # type: ignore[misc]
