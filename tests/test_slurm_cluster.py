"""The cluster of the tests itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keeper import descendants
from slurm_cluster import missing


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("how", ["leave", "SIGKILL"])
def test_nothing_is_left_of_a_cluster(how, tmp_path):
    """Also where whoever started it is killed, and where a job has daemons of its own."""
    code = (
        "import os, sys\nfrom slurm_cluster import Cluster\n"
        "with Cluster() as c:\n"
        "    job = c.sbatch('setsid sleep 300 & srun -N2 sleep 300', options=('-N2',))\n"
        "    c._until('tasks', 20, lambda: len(c.processes()) >= 5)\n"
        "    print(c.directory, c._keeper.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    directory, keeper = owner.stdout.readline().split()
    below = descendants(int(keeper))
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in below}
    assert {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"} <= names
    if how == "leave":
        owner.stdin.close()
    else:
        owner.kill()
    owner.wait(20)
    end_by = time.monotonic() + 10
    while time.monotonic() < end_by and (any(map(alive, [*below, int(keeper)])) or Path(directory).exists()):
        time.sleep(0.05)
    assert [pid for pid in [*below, int(keeper)] if alive(pid)] == []
    assert not Path(directory).exists()
