"""A process that starts others and outlives none of them: `python keeper.py DIRECTORY`.

Whoever starts it holds its standard input. Each line there is a JSON object {"name", "argv"}: the command is
started in DIRECTORY with its output in DIRECTORY/NAME.out, and {"pid"} comes back. When that pipe closes, or
whoever started it is gone (also by SIGKILL), every descendant is killed, daemons and orphans included, and
DIRECTORY removed.

It is a process of its own so that a test run that is killed leaves nothing behind, and it adopts the orphans
below it (PR_SET_CHILD_SUBREAPER), so that a daemon's grandchildren are found by their parent, not by their
name.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)


def descendants(root: int) -> list[int]:
    """Every living process below one, whatever session or group it is in; zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it ended meanwhile
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def reap() -> None:
    """Collect whatever ended below this process, so that no zombies pile up."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def end_all(seconds: float) -> list[int]:
    """Kill every descendant; what forks meanwhile is found in the next round. Returns what is left after the time."""
    end = time.monotonic() + seconds
    while (left := descendants(os.getpid())) and time.monotonic() < end:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
        reap()
    return left


def serve(directory: Path) -> None:
    """Start what standard input asks for, until it closes or the parent is gone."""
    parent, buffer = os.getppid(), b""
    while os.getppid() == parent:
        reap()
        # The timeout is for a parent whose pipe another of its children still holds open.
        if not select.select([0], [], [], 0.5)[0]:
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            with open(directory / f"{order['name']}.out", "ab") as output:
                child = subprocess.Popen(
                    order["argv"],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    # Should this very process be killed, the daemons go too.
                    preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
                )
            os.write(1, json.dumps({"pid": child.pid}).encode() + b"\n")


def main() -> None:
    """Serve, then clean up, whatever happened."""
    directory = Path(sys.argv[1]).resolve()
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this system cannot adopt orphans (PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(directory)
    finally:
        left = end_all(10)
        shutil.rmtree(directory, ignore_errors=True)
        if left:
            sys.exit(f"could not end the processes {left}")


if __name__ == "__main__":
    main()
