"""Standard streams that cannot fail a program."""

import os
import shlex
import subprocess
import sys
import time

from processes import REPOSITORY

CODE = (
    f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from launcher.core.streams import keep_streams\n"
    "keep_streams()\nfor i in range(1000):\n    print(i, 100 * '-')\nprint('at the end', file=sys.stderr)"
)


def _run(**streams):
    return subprocess.run([sys.executable, "-c", CODE], timeout=60, text=True, **streams)


def test_a_full_disk_fails_nothing():
    with open("/dev/full", "w") as full:
        done = _run(stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == "at the end\n"


def test_a_reader_that_has_seen_enough_fails_nothing():
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("0 ---")
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == "at the end\n"


def test_a_closed_stream_is_no_place_for_a_file(tmp_path):
    code = CODE + f"\nassert open({str(tmp_path / 'file')!r}, 'w').fileno() > 2"
    done = subprocess.run(["bash", "-c", f"{sys.executable} -c {shlex.quote(code)} >&-"], timeout=60)
    assert done.returncode == 0


def test_a_terminal_that_is_not_ready_is_waited_for():
    """Another program may have left it in that mode: a pipe that is full, and is read later."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([sys.executable, "-c", CODE], stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        time.sleep(1)
        with open(reader) as file:
            lines = file.read().splitlines()
        assert process.wait(60) == 0 and len(lines) == 1000 and lines[-1].startswith("999 ")
