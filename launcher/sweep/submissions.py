"""The job arrays of SLURM that a sweep was submitted as, and what is in the queue of them."""

from collections.abc import Mapping
from pathlib import Path

from launcher.core.files import read_json
from launcher.distributed import slurm

SUBMISSIONS = "submissions"  # in the directory of a grid; a directory for each that has one


def in_queue(path: Path) -> dict[str, str]:
    """The points of a grid that a job array of it still has: name to `queued` or `running`.

    Raises:
        RuntimeError: SLURM does not answer.
    """
    tasks: dict[str, str] = {}
    for file in sorted(path.glob(f"{SUBMISSIONS}/*/job.json")):
        known = read_json(file)
        tasks |= {f"{known['job']}_{index}": name for index, name in enumerate(known["points"])}
    active = _active({task.partition("_")[0] for task in tasks})
    return {tasks[task]: "queued" if state == "PENDING" else "running" for task, state in active.items()}


def _active(jobs: set[str]) -> dict[str, str]:
    """State of each task of some arrays that has not ended."""
    if not jobs:
        return {}
    try:
        text = slurm.ask("squeue", "--noheader", "--array", "--jobs", ",".join(sorted(jobs)), "--format", "%i %T")
    except RuntimeError as error:
        if "Invalid job id" in str(error):  # SLURM forgets jobs some minutes after their end
            return {}
        raise
    return dict(line.split() for line in text.splitlines())


def states(path: Path) -> Mapping[str, str]:
    """As `in_queue`, for who only looks: nothing where there is no SLURM."""
    try:
        return in_queue(path)
    except (RuntimeError, KeyError):
        return {}
