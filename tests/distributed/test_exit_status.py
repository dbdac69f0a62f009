"""How a program ends, by what it raises."""

import signal
import subprocess
import sys

import pytest
from processes import REPOSITORY

CODE = """
import os, signal, sys
sys.path.insert(0, {place!r})
from launcher.core.errors import BrokenFile, ConfigError, Explained
from launcher.distributed.exit_status import guarded
def run():
    {run}
sys.exit(guarded(run))
"""


@pytest.mark.parametrize(
    ("run", "status", "said"),
    [
        ("return 0", 0, ""),
        ("return 5", 5, ""),
        ("raise ConfigError('seed=x: must be a number.')", 2, "error: seed=x: must be a number.\n"),
        ("raise Explained('the disk is full')", 1, "rank 0 failed:\nfailed: the disk is full\n"),
        ("raise BrokenFile('b: no image')", 1, "rank 0 failed:\nfailed: b: no image. Mend it, or take it out.\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, ""),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)  # fmt: skip
def test_an_exception_becomes_a_message_and_a_status(run, status, said):
    code = CODE.format(place=str(REPOSITORY), run=run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (status, said, "")


def test_what_nobody_foresaw_is_told_with_its_traceback():
    code = CODE.format(place=str(REPOSITORY), run="{}['x']")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("rank 0 failed:\nTraceback")
    assert done.stderr.endswith("failed: KeyError: 'x'\n")


def test_an_ignored_ctrl_c_stays_ignored():
    """As nohup, and `&` in a script, have it."""
    run = "os.kill(os.getpid(), signal.SIGINT); return 3"
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(place=str(REPOSITORY), run=run)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        timeout=60,
    )
    assert done.returncode == 3
