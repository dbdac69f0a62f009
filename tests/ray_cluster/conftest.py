import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from sweeps import OWN

# Nothing is sent anywhere, and nothing written into the home directory.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@dataclass
class TwoNodes:
    """The cluster of two_nodes.py."""

    process: subprocess.Popen
    address: str
    environment: dict

    def do(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def ray_environment():
    """What Ray of these tests has in its environment: sockets of its own, whose names may not be long."""
    directory = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    yield {**RAY, "RAY_TMPDIR": directory}
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def two_nodes(ray_environment):
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "two_nodes.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ray_environment,
    )  # fmt: skip
    address = process.stdout.readline().strip()
    assert address, "the cluster did not come up"
    yield TwoNodes(process, address, ray_environment)
    process.stdin.close()
    process.wait(60)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path
