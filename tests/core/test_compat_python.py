"""Private names of Python and W&B: that each is there, and does what it is taken for."""

import os
import subprocess
import sys

import pytest

from launcher.core import compat_python


def test_exit_functions_run():
    code = (
        "import atexit, os; from launcher.core import compat_python\natexit.register(print, 'goodbye', flush=True)\n"
        "compat_python.run_exit_functions(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "goodbye\n", done.stderr


SERVER = """
import multiprocessing, os
from multiprocessing import forkserver, resource_tracker
from launcher.core import compat_python
compat_python.stop_fork_server()  # where there is none
if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=os.getpid)
    process.start()
    process.join()
    pids = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
    compat_python.stop_fork_server()
    print(*pids)
"""


def test_the_fork_server_and_its_tracker_end(tmp_path):
    (tmp_path / "own.py").write_text(SERVER)
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


MAIN = """
import json, sys
from launcher.core import compat_python
if __name__ == "__main__":
    print(json.dumps(compat_python.main_module()))
else:
    print(__name__, sys.argv[1:])
"""


def test_the_main_module_of_a_process_is_imported_in_another(tmp_path):
    (tmp_path / "own.py").write_text(MAIN)

    def output(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    other = "import json, sys; from launcher.core import compat_python as c; c.import_main(json.loads(sys.argv[1])); "
    for start in (["own.py", "a=1"], ["-m", "own", "a=1"]):
        told = output("-c", other + "print(sys.modules['__main__'].__file__)", output(*start))
        assert told == f"__mp_main__ ['a=1']\n{tmp_path}/own.py\n"


STARTED = """
import json, os, signal, sys
from launcher.core import compat_python
pids = []
compat_python.on_wandb_core(lambda service: pids.append(service.pid))
import wandb
run = wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
commands = [open(f"/proc/{pid}/cmdline").read() for pid in pids]
run.finish()
assert len(pids) == 1 and "wandb-core" in commands[0], (pids, commands)
"""


def test_wandb_starts_its_service_by_subprocess(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_wandb_has_the_settings_that_it_may_drop():
    import wandb

    assert set(compat_python.wandb_settings(1)) <= set(wandb.Settings.model_fields)
