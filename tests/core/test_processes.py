"""What /proc tells of processes."""

import os
import signal
import subprocess
import sys
import time

from launcher.core.processes import cores, exists, is_stopped, process_facts, seconds_since_start


def _until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_there_until_it_ends():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert exists(process.pid) and exists(os.getpid()) and exists(1) and not is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    _until(lambda: is_stopped(process.pid))
    assert exists(process.pid)
    process.kill()
    _until(lambda: not exists(process.pid))
    assert process_facts(process.pid)[0] == "Z", "which kill(pid, 0) would take for a living one"
    process.wait()
    assert not exists(process.pid) and process_facts(process.pid) == []


def test_the_start_of_a_process_is_known():
    code = "import time; time.sleep(0.5); from launcher.core.processes import *; print(seconds_since_start())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - started + 0.05
    assert seconds_since_start() > 0


def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == [min(before)]
    finally:
        os.sched_setaffinity(0, before)
    assert cores() == sorted(before)
