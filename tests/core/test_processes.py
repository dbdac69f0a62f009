"""What /proc tells of processes, and modules in processes of their own, which nothing that lies around hides."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launcher.core.processes import ROOT, cores, exists, is_stopped, module_command, process_facts, seconds_since_start


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


def test_a_module_is_found_and_neither_place_hides_a_package(tmp_path):
    """Beside a csv.py in the working directory, and the csv.py of the trackers."""
    (tmp_path / "csv.py").write_text("raise SystemExit('the wrong csv')\n")
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')\n")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("metrics.jsonl", "timings.jsonl"):
        (run_dir / name).touch()
    command = module_command("launcher.run.trackers.view_process", str(run_dir), "0", "csv")
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run_dir / "metrics.csv").read_text().strip() == "step,epoch"


def test_the_package_of_this_tree_is_the_one_that_runs(tmp_path):
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher/__init__.py").write_text("raise SystemExit('another launcher')\n")
    command = module_command("launcher.__main__", "--version")
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and "launcher" in done.stdout, done.stderr
    assert (Path(ROOT) / "launcher/core/processes.py").exists()
