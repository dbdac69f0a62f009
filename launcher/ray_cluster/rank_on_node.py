"""The actor of one rank of a trial, and what a node of a Ray cluster tells about itself.

Sent to the nodes by value, so that they need not import this package: the standard library and Ray are enough.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")  # what Ray names an actor's GPUs by
LOST = 255  # exit status of a rank that ended unseen, with its keeper


def missing_on_node(places: Sequence[str]) -> list[str]:
    """Which of some files and directories this node does not have."""
    return [place for place in places if not os.path.exists(place)]


class RankOnNode:
    """One rank of a trial, as a process of the node that Ray has placed this actor on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keeper: subprocess.Popen[bytes] | None = None
        self.asked = 0  # a signal that came before there was a process

    def look(self, places: Sequence[str]) -> dict[str, Any]:
        """What the start of a trial has to know of this node.

        Returns:
            `node`, Ray's id of it; `host`, `address` and a free `port` of it; `hiding`, the variables of Ray that name
            the GPUs of this actor; `missing`, those of some places that the node does not see.
        """
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return {
            "node": ray.get_runtime_context().get_node_id(),
            "host": socket.gethostname(),
            "address": ray.util.get_node_ip_address(),
            "port": port,
            "hiding": {name: os.environ[name] for name in HIDING if os.environ.get(name)},
            "missing": missing_on_node(places),
        }

    def run(self, keeper: str, command: Sequence[str], environment: Mapping[str, str], place: str, output: str) -> int:
        """Run a command of this node's Python, started by the script `keeper`, to its end.

        Args:
            keeper: Path of keeper.py.
            command: What follows the interpreter.
            environment: All of it.
            place: Working directory.
            output: File that the output is appended to.

        Returns:
            The exit status, negative where a signal ended it.
        """
        with self.lock:
            if self.asked:
                return -self.asked
            with open(output, "ab") as file:
                self.keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", keeper, sys.executable, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    cwd=place,
                    env=dict(environment),
                    start_new_session=True,
                )
        assert self.keeper.stdout is not None
        said = self.keeper.stdout.read()
        self.keeper.wait()
        return int(said) if said else LOST

    def send(self, number: int) -> None:
        """Send a signal to the rank, or let it not start where it has not."""
        with self.lock:
            if self.keeper is None:
                self.asked = number
            elif self.keeper.stdin is not None:
                try:
                    self.keeper.stdin.write(b"%d\n" % signal.Signals(number))
                    self.keeper.stdin.flush()
                except OSError:  # it has just ended
                    pass
