"""Locks between processes: who has one, and that the end of a process, in whatever way, frees it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.core.locks import Locked, is_locked, locked, take_lock

HOLDER = """
import sys, time
from pathlib import Path
from launcher.core.locks import take_lock
take_lock(Path(sys.argv[1]), {"name": "somebody"})
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_says_who_holds_it_until_that_is_killed(tmp_path):
    file = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n" and is_locked(file)
    with pytest.raises(Locked, match="somebody"):
        take_lock(file, {})
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_locked(file)
    os.close(take_lock(file, {"name": "next"}))
    assert file.read_text() == '{"name": "next"}'
    holder.stdout.close()


def test_the_others_wait_where_they_are_to(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from launcher.core.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(0.5)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"in\n"
    started = time.monotonic()
    with locked(tmp_path / "lock"):
        assert time.monotonic() - started > 0.3
    assert holder.wait() == 0
    holder.stdout.close()


def test_a_file_that_one_may_not_look_at_counts_as_locked(tmp_path):
    assert is_locked(tmp_path / "absent")
