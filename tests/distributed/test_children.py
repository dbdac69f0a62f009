"""Processes that a trainer starts: which signals reach them, and what is said where one is lost."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from launcher.core.errors import Explained
from launcher.distributed import children
from launcher.distributed.stop_request import SIGNALS


class Lost:
    """Samples of which the third ends the process that reads it."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), self.how)
        return index


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGKILL, r"was killed by SIGKILL, perhaps by the system for lack of memory: fewer num_workers need"),
        (signal.SIGSEGV, r"was killed by SIGSEGV\."),
        (signal.SIGBUS, r"/dev/shm, the shared memory .* is too small"),
    ],
)
def test_a_lost_process_is_explained(how, said):
    found = children.loaded(torch.utils.data.DataLoader(Lost(how), num_workers=1, prefetch_factor=1))
    with pytest.raises(Explained, match=said):
        list(found)


def test_a_full_shared_memory_is_explained():
    class Full:
        def __iter__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Explained, match="docker run --shm-size"):
        list(children.loaded(Full()))


def test_other_errors_stay_as_they_are():
    def broken():
        yield 1
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing") as raised:
        list(children.loaded(broken()))
    assert not isinstance(raised.value, Explained)


def test_no_request_to_stop_reaches_what_is_sheltered():
    show = [sys.executable, "-c", "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with children.sheltered():
        blocked = subprocess.run(show, capture_output=True, text=True, check=True).stdout.split()
    assert {*map(int, SIGNALS)} <= {*map(int, blocked)}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_sockets_get_a_short_name_where_that_of_tmpdir_is_long(tmp_path):
    long = tmp_path / ("d" * 100)
    long.mkdir()
    code = (
        "from multiprocessing import util; from launcher.distributed import children\n"
        "children.start_fork_server(['json']); print(util.get_temp_dir())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(long)}, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("/tmp/pymp-"), done.stderr


def test_python_ends_while_a_loader_has_more_to_give():
    """What is left of the generator at the end of the interpreter starts no thread, for which Python would wait."""
    script = (
        "import torch\n"
        "from launcher.distributed import children\n"
        "kept = children.loaded(torch.utils.data.DataLoader(list(range(9))))\n"
        "next(kept)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
