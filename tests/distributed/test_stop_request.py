"""How a process ends that is asked to."""

import os
import signal
import subprocess
import sys
import time

from processes import REPOSITORY

from launcher.distributed.stop_request import SIGNALS, StopRequest


def test_the_checkpoint_that_is_being_written_is_not_lost(tmp_path):
    code = (
        "import pathlib, threading, time\nfrom launcher.distributed import stop_request\n"
        "def write():\n    time.sleep(1)\n    pathlib.Path('saved').touch()\n"
        "threading.Thread(target=write, name='checkpoint').start()\nstop_request.leave(3, saving={})\n"
    )
    for seconds, there in ((0, False), (60, True)):
        done = subprocess.run([sys.executable, "-c", code.format(seconds)], cwd=tmp_path, env=os.environ | {
            "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
        assert done.returncode == 3 and (tmp_path / "saved").exists() is there


def test_what_signals_did_before_they_do_again_once_it_is_closed():
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopRequest(None)
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 10
    while not stop:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stop.reason == "SIGTERM" and [signal.getsignal(number) for number in SIGNALS] != before
    stop.close()
    assert [signal.getsignal(number) for number in SIGNALS] == before and signal.set_wakeup_fd(-1) == -1
