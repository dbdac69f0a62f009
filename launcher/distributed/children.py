"""Processes that this one starts: where their sockets are, what they import, which signals reach them, when they end.

A terminal and a cluster send their signals to all processes of a run. The trainer decides what becomes of the run: what
loads samples for it, or shows them, has to go on until then, also while it starts, and to end with it however it ends.
"""

import contextlib
import errno
import functools
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing import connection, forkserver, resource_tracker, util
from typing import Any

from launcher.core.errors import ConfigError, Explained
from launcher.distributed.stop_request import SIGNALS

LONGEST = 107 - len("/pymp-12345678/listener-12345678")  # bytes; a socket's path has 107, see unix(7)


@contextlib.contextmanager
def sheltered() -> Iterator[None]:
    """Start processes that requests to stop do not reach: blocked signals stay blocked in what is started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server(modules: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Start the process that the others are forked from, unless it is there; it imports `modules` in advance.

    It finds them where this process does, and not first in the working directory, as `python -c` would; `environment`
    is added to its environment.

    Raises:
        ConfigError: There is no place for its sockets.
    """
    _keep_paths_short()
    _kill_loaders_at_end(os.getpid())
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    quiet = "ignore:resource_tracker:UserWarning"  # what a run that is ended at once has left, it removes
    changed = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet])),
        **(environment or {}),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ |= changed
    try:
        with sheltered():
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # once more: that has unblocked some
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _keep_paths_short() -> None:
    """Let multiprocessing put its sockets into /tmp where the name of the temporary directory is too long for them.

    To be called before its first process is started, which inherits the place.
    """
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) <= LONGEST:
        return
    kept, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        util.get_temp_dir()  # made at its first call
    except OSError as error:
        raise ConfigError(
            f"TMPDIR={chosen}: sockets need a name of at most {LONGEST} bytes, and /tmp cannot be used: "
            f"{error.strerror}. Choose a shorter one."
        ) from error
    finally:
        tempfile.tempdir = kept


def loaded(loader: Iterable[Any]) -> Iterator[Any]:
    """What a DataLoader gives. Where no more is asked of it, its workers end within a second, also at a slow sample.

    Raises:
        Explained: A worker was killed, or the shared memory by which it hands over its samples is full.
    """
    others = set(multiprocessing.active_children())
    workers: set[Any] = set()
    batches = None
    try:
        batches = iter(loader)
        workers = set(multiprocessing.active_children()) - others or getattr(loader, "workers_that_stay", set())
        if getattr(loader, "persistent_workers", False):
            loader.workers_that_stay = workers  # type: ignore[attr-defined]
        yield from batches
    except (OSError, EOFError, RuntimeError) as error:
        if workers and isinstance(error, ConnectionError | EOFError):  # seen before it is known that one has ended
            connection.wait([worker.sentinel for worker in workers], timeout=1)
        if (text := _explain(error, workers)) is None:
            raise
        raise Explained(text) from error
    finally:
        if workers and not sys.is_finalizing():  # when Python ends no thread starts any more: it would wait for ever
            late = threading.Timer(1.0, lambda: [worker.kill() for worker in workers])
            late.start()
            del batches  # torch tells them to end, and waits for each of them
            late.cancel()


def _explain(error: Exception, workers: set[Any]) -> str | None:
    """What a person needs to know of workers that cannot go on; None where the error itself says it."""
    killed = {-worker.exitcode: worker.pid for worker in workers if (worker.exitcode or 0) < 0}
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC and not workers  # semaphores are there too
    if full or signal.SIGBUS in killed or re.search("shared memory|Bus error", str(error)):
        return (
            "/dev/shm, the shared memory by which processes hand over the samples that they load, is too small. Use "
            "num_workers=0, or give it more: docker run --shm-size=8g (or --ipc=host), mount -o remount,size=8g "
            f"/dev/shm. ({str(error).strip().splitlines()[-1]})"
        )
    for number, pid in killed.items():
        memory = ", perhaps by the system for lack of memory: fewer num_workers need less" * (number == signal.SIGKILL)
        return f"a process that loads samples (pid {pid}) was killed by {signal.Signals(number).name}{memory}."
    return None


def serve_trainer(environment: Mapping[str, str], number: int = 0) -> None:
    """Prepare a process of a DataLoader: it lives as long as the trainer does, whatever signals come meanwhile.

    torch's own watch is over the parent, which is the fork server: that waits for its children, and has another
    environment than the trainer's. torch tells the worker's number.
    """
    os.environ.clear()
    os.environ.update(environment)
    for each in SIGNALS:  # a handler, and not a blocked signal: programs that a dataset starts would inherit that
        signal.signal(each, lambda number, frame: None)  # the trainer got it as well, and decides
        signal.siginterrupt(each, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_trainer, name="trainer", daemon=True).start()


def _end_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


@functools.cache
def _kill_loaders_at_end(pid: int) -> None:
    """Once in each process: what loads samples takes no SIGTERM, by which multiprocessing would end it, and wait."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    util.Finalize(None, kill, exitpriority=10)
