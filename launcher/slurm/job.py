"""A batch job of SLURM: its run directory, its way back into the queue, and the options that it is submitted with.

Needs nothing but the standard library: batch scripts call it (`python -m launcher.slurm.job`) before anything
heavy is imported, on nodes where perhaps nothing heavy is installed.
"""

import itertools
import json
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.files import last_step
from launcher.distributed import slurm_commands
from launcher.distributed.slurm import job_name
from launcher.run.pruning import PRUNED
from launcher.sweep import failure

# Reasons to stop that a person, or a search, gave: Ctrl-C, a length of time, worse than others; not to be undone.
ASKED = ("SIGINT", "max_time", PRUNED)
# Set for one process and wrong for any other: never to be handed on to a job that is submitted from here.
OF_A_PROCESS = re.compile(
    r"(SLURM|SLURMD|SRUN|PMI|PMIX|TORCHELASTIC|ACCELERATE)_"
    r"|(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|ROLE_NAME|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE|ROLE_WORLD_SIZE"
    r"|MASTER_ADDR|MASTER_PORT|CUDA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|OMP_NUM_THREADS)$"
)
KEPT = {"SLURM_CONF", "SLURM_CLUSTERS"}  # say which SLURM, not which job


def quote(argument: str) -> str:
    """An argument for bash, in one line, that is itself and nothing else, whatever is in it.

    As shlex.quote, but with line ends and other control characters escaped: sbatch refuses scripts with a carriage
    return at the end of a line, and looks for #SBATCH at the beginning of each.
    """
    if not any(ord(c) < 32 or ord(c) == 127 for c in argument):
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\{ord(m[0]):03o}", escaped) + "'"


def submission_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment to call sbatch in, without the ranks, devices and job of the process that calls it.

    sbatch hands it on to the new job, which would take RANK or CUDA_VISIBLE_DEVICES for its own.
    """
    return {k: v for k, v in environment.items() if k in KEPT or not OF_A_PROCESS.match(k)}


def sbatch_options(settings: Mapping[str, object]) -> list[str]:
    """Options of sbatch from settings (conf/cluster/): `{"gpus_per_node": 8, "exclusive": True, "account": None}`.

    That is --gpus-per-node=8 --exclusive. None and False leave an option out; but `requeue: False` is --no-requeue,
    since sites may have requeueing as their default.
    """
    if settings.get("requeue") is False:
        settings = {**settings, "requeue": None, "no_requeue": True}
    given = {k.replace("_", "-"): v for k, v in settings.items() if v is not None and v is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def run_directory(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Where the run of a batch job keeps its files: the last `hydra.run.dir=`, or a directory by the job's own name.

    Raises:
        ConfigError: It is a sweep, or the directory would be another one after a requeue.
    """
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigError(
            "-m (--multirun): one batch job holds one run. For a sweep as a job array, call "
            "`python launcher/train.py -m hydra/launcher=slurm ...` on the login node."
        )
    given = [argument.partition("=") for argument in arguments]
    chosen = next((value for key, _, value in reversed(given) if key.lstrip("+") == "hydra.run.dir"), None)
    if chosen is None:
        return f"outputs/slurm/{job_name(environment) or 'unknown'}"
    if len(chosen) > 1 and chosen[0] == chosen[-1] and chosen[0] in "'\"":
        chosen = chosen[1:-1].replace(f"\\{chosen[0]}", chosen[0])
    if "${" in chosen:
        raise ConfigError(
            f"hydra.run.dir={chosen} would be another directory when the job comes back from the queue. "
            "Give a plain path, or none: outputs/slurm/<job id> is used then."
        )
    return chosen


def begin(run_dir: Path, max_requeues: int, environment: Mapping[str, str]) -> None:
    """Note that a batch job starts (again), and refuse it where it keeps coming back and never gets further.

    Every way back counts: requeues by `end`, by SLURM after a preemption or a node failure, by hand; restarts.jsonl of
    the run directory has them. An old stopped.json and failed.json go away, so that `end` finds only a new one.

    Raises:
        ConfigError: It came back without a new checkpoint more than `max_requeues` times in a row.
    """
    for stale in ("stopped.json", failure.FAILED):
        (run_dir / stale).unlink(missing_ok=True)
    notes, job, step = run_dir / "restarts.jsonl", job_name(environment), last_step(run_dir)
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    if restart == 0:
        return  # A first start has nothing to note: its directory is the run's to make.
    rows = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    rows = [row for row in rows if row["job"] == job]
    run_dir.mkdir(parents=True, exist_ok=True)
    same = sum(1 for _ in itertools.takewhile(lambda row: row["step"] == step, reversed(rows)))
    if same >= max_requeues:
        reason = (
            f"job {job} came back {same + 1} times with its newest checkpoint at step {step}, and max_requeues is "
            f"{max_requeues}: it ends before it saves. Give it more time (--time, the partition's grace time), save "
            f"more often (checkpoint.every), or look into the log; then submit with hydra.run.dir={run_dir}."
        )
        failure.write(run_dir, reason, [], "", job=job)
        raise ConfigError(reason)
    with notes.open("a") as file:
        file.write(json.dumps({"job": job, "restart": restart, "step": step, "host": socket.gethostname()}) + "\n")


def end(run_dir: Path, status: int, environment: Mapping[str, str]) -> bool:
    """Requeue a batch job whose processes were stopped and did not finish; note it where they failed.

    Stopped is who ended with 0 and left a stopped.json, and who was asked to leave so early that the signal just
    ended it. Not requeued is what a person stopped: with Ctrl-C, max_time, or scancel, which a requeue would undo
    (tried: SLURM lets a cancelled job requeue itself, so that it never ends).

    Returns:
        Whether the job goes back into the queue; SLURM then ends the batch script at any moment.

    Raises:
        RuntimeError: SLURM refuses.
    """
    job = job_name(environment)
    if job is not None and _was_stopped(run_dir, status):
        state, reason = slurm_commands.state_and_reason(job)
        if state in {"PENDING", "REQUEUED"}:
            return True  # by somebody else, who was first
        if _is_to_go_on(job, state, reason, status):
            slurm_commands.requeue(job)
            return True
    if status != 0 and run_dir.is_dir():
        text = failure.tail(run_dir / failure.OUTPUT)
        failure.write(
            run_dir, failure.first_error(text) or f"srun ended with exit status {status}", [status], text, job=job
        )
    return False


def _was_stopped(run_dir: Path, status: int) -> bool:
    """Whether the processes were stopped, by anybody but a person."""
    stopped = run_dir / "stopped.json"
    if status == 0:
        return stopped.exists() and json.loads(stopped.read_text()).get("reason") not in ASKED
    return status in (128 + signal.SIGUSR1, 128 + signal.SIGTERM)


def _is_to_go_on(job: str, state: str, reason: str, status: int) -> bool:
    """Whether a job whose processes were stopped is to come back, by its state and the reason that SLURM gives."""
    # RUNNING: asked to leave (preemption, nearly out of time). At the limit itself it is ending, and says why.
    if state != "RUNNING":
        return reason == "TimeLimit"
    # SIGTERM is also what srun ends the others with where one rank failed.
    return status != 128 + signal.SIGTERM or slurm_commands.was_preempted(job)


USAGE = """What batch scripts call:
  python -m launcher.slurm.job directory [OVERRIDE ...]         print the run directory of this job
  python -m launcher.slurm.job directory --task FILE            the same, for a trial of a sweep
  python -m launcher.slurm.job begin MAX_REQUEUES DIRECTORY   note that the job starts; status 1 if it gets no further
  python -m launcher.slurm.job end STATUS DIRECTORY           requeue the job if its run was stopped, not finished"""


def main(arguments: Sequence[str]) -> int:
    """Do what USAGE says. No argparse: overrides may look like options."""
    environment = os.environ
    try:
        match list(arguments):
            case ["directory", "--task", file]:
                print(json.loads(Path(file).read_text(encoding="utf-8"))["run_dir"])
            case ["directory", *overrides]:
                found = run_directory(overrides, environment)
                from launcher.config.places import check_writable  # which brings Hydra

                check_writable(Path(found))
                print(found)
            case ["begin", max_requeues, run_dir]:
                if not max_requeues.isdigit():
                    raise ConfigError(f"MAX_REQUEUES={max_requeues}: must be a whole number of at least 0.")
                begin(Path(run_dir), int(max_requeues), environment)
            case ["end", status, run_dir] if status.isdigit():
                if end(Path(run_dir), int(status), environment):
                    print(f"job {job_name(environment)} goes back into the queue and on in {run_dir}", flush=True)
                    return 0
                return int(status)
            case _:
                print(USAGE, file=sys.stderr)
                return 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2 if arguments[0] == "directory" else 1
    except RuntimeError as error:
        print(f"could not requeue: {error}\nTo go on, submit again with hydra.run.dir={arguments[-1]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
