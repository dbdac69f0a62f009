"""The job arrays of SLURM that a sweep was submitted as, and what is in the queue of them."""

from pathlib import Path

from launcher.core.files import read_json
from launcher.distributed import slurm_commands
from launcher.sweep.trial_state import State

SUBMISSIONS = "submissions"  # in the directory of a sweep; a directory for each that has one


def in_queue(path: Path) -> dict[str, State]:
    """The trials of a sweep that a job array of it still has: name to `queued` or `running`.

    Raises:
        RuntimeError: SLURM does not answer.
    """
    tasks: dict[str, str] = {}
    for file in sorted(path.glob(f"{SUBMISSIONS}/*/job.json")):
        known = read_json(file)
        tasks |= {f"{known['job']}_{index}": name for index, name in enumerate(known["points"])}
    active = slurm_commands.active_tasks(sorted({task.partition("_")[0] for task in tasks}))
    return {tasks[task]: State.QUEUED if state == "PENDING" else State.RUNNING for task, state in active.items()}
