"""How a program ends: from what it raises to its message and exit status."""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import launcher
from launcher.core import compat_python
from launcher.core.errors import BrokenFile, ConfigError, Explained
from launcher.core.streams import keep_streams
from launcher.distributed import watchdog
from launcher.distributed.rendezvous import until_heard
from launcher.distributed.stop_request import leave


def guarded(run: Callable[[], int]) -> int:
    """Run the program and turn what it raises into its exit status and message.

    Returns:
        What `run` returned. After an exception the process ends here, not waiting for threads that may wait for a dead
        peer: 2 for wrong input, with the message alone; 1 for a failure, with the traceback and the rank. A rank of
        several ends here too: what is saved is saved, and torch's threads at times abort a process that unloads.
    """
    keep_streams()
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):  # not where it is ignored
        signal.signal(signal.SIGINT, _heed_ctrl_c)
    os.environ["MPLBACKEND"] = "agg"  # that of the notebook or desktop where this was started need not even import
    rank = int(os.environ.get("RANK", "0")) if os.environ.get("RANK", "0").isdigit() else 0
    try:
        status = run()
        if watchdog.current is None:
            return status
        compat_python.run_exit_functions()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if signal.SIGINT in launcher.asked_early:
            status = 130
        elif isinstance(error, ConfigError):
            # Every rank finds the same mistake. Rank 0 speaks; the launcher then ends the others before they do.
            time.sleep(3 if rank else 0)
            print(f"error: {error}", file=sys.stderr)
            status = 2
        else:
            text = _failure(error)
            echo = watchdog.current.failed(text) if watchdog.current is not None else None
            print(echo or f"rank {rank} failed:\n{text}", file=sys.stderr)
            status = 1
    if status != 130:
        until_heard()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    leave(status)


def _heed_ctrl_c(number: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt, and remember that Ctrl-C was pressed: a library's own cleaning up may hide it.

    Hydra 1.3 and OmegaConf 2.3 make another error of one in 25 while they compose; some are gone without a word.
    """
    launcher.asked_early.append(number)
    raise KeyboardInterrupt


def _failure(error: Exception) -> str:
    """The exception being handled, as its traceback with a last line `failed: Type: message`."""
    if isinstance(error, BrokenFile):  # nobody needs to know who read it
        return f"failed: {error.in_short()}"
    if isinstance(error, Explained):
        return f"failed: {error}"
    return f"{traceback.format_exc()}failed: {type(error).__name__}: {error}".rstrip()
