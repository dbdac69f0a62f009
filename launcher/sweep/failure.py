"""How a trial of a sweep failed: failed.json beside its output. Needs the standard library alone, for batch scripts."""

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.core.files import read_json, write_json

FAILED, OUTPUT = "failed.json", "output.log"


def tail(output: Path, offset: int = 0) -> str:
    """The end of what an attempt has printed, from where it began."""
    try:
        with open(output, "rb") as file:
            file.seek(max(offset, output.stat().st_size - 64_000))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def first_error(text: str) -> str:
    """What the first that failed said, in one line; empty where nobody did."""
    found = re.findall(r"^(?:failed|error): (.+)$|^(rank \d+ (?:\(pid .*\) is gone|has been silent).+)$", text, re.M)
    return next((a or b for a, b in found), "")[:500]


def how_it_ended(rank: int, status: int, printed: str) -> str:
    """One line about a rank that failed: the signal that ended it, else what it said, else its exit status."""
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", perhaps by the system for lack of memory" if status == -signal.SIGKILL else ""
        return f"rank {rank} was killed by {name}{memory}"
    return first_error(printed) or f"rank {rank} ended with exit status {status}"


def write(path: Path, reason: str, statuses: Sequence[int | None], text: str, **more: Any) -> None:
    """Write failed.json into a run directory: the exit statuses that are known, and the end of what was printed."""
    content = {"reason": reason, "exit_status": list(statuses), "time": time.time(), **more, "output": text[-8000:]}
    write_json(path / FAILED, content)


def reason_of(path: Path) -> str:
    """Why the trial of a run directory failed; empty where nothing says it."""
    return str(read_json(path / FAILED).get("reason", ""))
