import os
import signal
import subprocess
import sys
import time

import pytest
from processes import REPOSITORY

KEEPER = str(REPOSITORY / "launcher/ray_cluster/keeper.py")
# Says that it is there, and what it was asked by.
CHILD = (
    "import os, signal, sys, time\n"
    "def asked(number, frame):\n"
    "    open(sys.argv[1], 'a').write(f'{number}\\n'); sys.exit(3)\n"
    "for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, asked)\n"
    "open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\n"
    "time.sleep(60)\n"
)


@pytest.fixture
def kept(tmp_path):
    """A keeper, the file that its child writes, and the child's pid."""
    file = tmp_path / "said"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", KEEPER, sys.executable, "-c", CHILD, str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not file.exists() or not file.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process, file, int(file.read_text())
    process.kill()
    process.wait()
    process.stdout.close()


def until_asked(file):
    """The signal that the child was asked to end by."""
    deadline = time.monotonic() + 30
    while len(said := file.read_text().split()) < 2:
        assert time.monotonic() < deadline, "the rank was not asked to end"
        time.sleep(0.01)
    return int(said[1])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_reaches_the_rank_and_its_status_is_told(number, kept):
    process, _, pid = kept
    process.stdin.write(b"%d\n" % number)
    process.stdin.flush()
    assert int(process.stdout.readline()) == (-signal.SIGKILL if number == signal.SIGKILL else 3)
    assert process.wait(10) == 0
    assert not os.path.exists(f"/proc/{pid}")


def test_a_rank_whose_actor_is_gone_is_asked_to_save(kept):
    process, file, _ = kept
    process.stdin.close()
    assert until_asked(file) == signal.SIGTERM
    assert process.wait(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_rank_whose_keeper_is_killed_is_asked_to_save(kept):
    process, file, _ = kept
    process.kill()
    assert until_asked(file) == signal.SIGTERM
