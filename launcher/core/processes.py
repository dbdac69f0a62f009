"""Processes of this machine, the cores that they may run on, and how a module is started in one of its own."""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


def cores() -> list[int]:
    """Numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def exists(pid: int) -> bool:
    """Whether a process is there, and not only as one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process_facts(pid)[:1] != ["Z"]


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped, as by Ctrl-Z."""
    return process_facts(pid)[:1] == ["T"]


def seconds_since_start() -> float:
    """Seconds since this process was started, its imports included; 0 where the system does not tell."""
    try:
        ticks = int(process_facts("self")[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def process_facts(pid: int | str) -> list[str]:
    """What /proc tells of a process after its name, its state first; nothing where it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def module_command(module: str, *words: str) -> list[str]:
    """A command line that runs the function `main` of a module of this package, whether or not it is installed.

    The place of the package is put last on the path, where it hides nothing, after the package itself was found there.
    Neither the working directory nor the module's own directory, whose csv.py would be the one of everybody, is on it.
    It finds the words in sys.argv[1:].
    """
    code = (
        f"import sys; sys.path.insert(0, {ROOT!r}); import launcher; sys.path.append(sys.path.pop(0)); "
        f"from {module} import main; main()"
    )
    return [sys.executable, "-P", "-c", code, *words]
