"""SLURM's own commands: the one place that calls them and reads their answers.

Needs nothing but the standard library, as batch scripts do. Each function raises RuntimeError where the command is not
there, does not answer or refuses, with what it says.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence


def ask(*command: str, stdin: str = "", environment: Mapping[str, str] | None = None, with_errors: bool = False) -> str:
    """What one of SLURM's commands prints; `with_errors` also on standard error, where `sbatch --test-only` answers."""
    try:
        done = subprocess.run(command, input=stdin, env=environment, text=True, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{shlex.join(command)}: {error}") from error
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout + (done.stderr if with_errors else "")


def node_address(name: str) -> str:
    """The address that SLURM itself uses for a node."""
    text = ask("scontrol", "show", "node", "-o", name)
    match = re.search(r"\bNodeAddr=(\S+)", text)
    if match is None:
        raise RuntimeError(f"the host {name} does not resolve, and scontrol knows no address for it: {text!r}")
    return match[1]


def state_and_reason(job: str) -> tuple[str, str]:
    """The state of a job, such as RUNNING, and the reason for it that squeue gives; `job` as from `slurm.job_name`."""
    state, reason = ask("squeue", "--noheader", "--jobs", job, "--format", "%T %r").strip().split(" ", 1)
    return state, reason


def was_preempted(job: str) -> bool:
    """Whether SLURM has sent a job away for another one."""
    return re.search(r"\bPreemptTime=\d", ask("scontrol", "show", "job", "--oneliner", job)) is not None


def requeue(job: str) -> None:
    """Put a job back into the queue under its own id; SLURM ends what still runs of it.

    It refuses jobs that were submitted with --no-requeue, or are being cancelled.
    """
    ask("scontrol", "requeue", job)


def active_tasks(arrays: Sequence[str]) -> dict[str, str]:
    """State of each task of some job arrays that has not ended, by its name such as 12_3."""
    if not arrays:
        return {}
    try:
        text = ask("squeue", "--noheader", "--array", "--jobs", ",".join(arrays), "--format", "%i %T")
    except RuntimeError as error:
        if "Invalid job id" in str(error):  # SLURM forgets jobs some minutes after their end
            return {}
        raise
    return dict(line.split() for line in text.splitlines())


def largest_array() -> int | None:
    """The most tasks that a job array may have here; None where SLURM does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else None


def try_submission(command: Sequence[str], script: str, environment: Mapping[str, str]) -> str:
    """What sbatch says to a script that it only looks at, such as when it would start; the command names none."""
    return ask(*command, "--test-only", stdin=script, environment=environment, with_errors=True).strip()


def submit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit a job by a command with --parsable, and give its id."""
    return ask(*command, environment=environment).strip().partition(";")[0]
