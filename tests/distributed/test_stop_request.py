"""How a process ends that is asked to."""

import os
import subprocess
import sys

from processes import REPOSITORY


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
