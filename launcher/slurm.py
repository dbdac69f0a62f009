"""What SLURM knows of this process and its job, and what the launcher asks of SLURM.

Needs nothing but the standard library: batch scripts call it (`python -m launcher.slurm`) before anything
heavy is imported, on nodes where perhaps nothing heavy is installed.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launcher import failure
from launcher.errors import ConfigError

# Below the ports that Linux gives to outgoing connections (32768 and up) and above those of common services.
FIRST_PORT, PORTS = 20_000, 10_000
# Step ids from here on are no srun of the user's: batch script, external, interactive, pending.
SPECIAL_STEPS = 0xFFFF_FFF0
# Reasons to stop that a person gave: Ctrl-C, and a length of time. A requeue would undo them.
ASKED = ("SIGINT", "max_time")
# Set for one process and wrong for any other: never to be handed on to a job that is submitted from here.
OF_A_PROCESS = re.compile(
    r"(SLURM|SLURMD|SRUN|PMI|PMIX|TORCHELASTIC|ACCELERATE)_"
    r"|(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|ROLE_NAME|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE|ROLE_WORLD_SIZE"
    r"|MASTER_ADDR|MASTER_PORT|CUDA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|OMP_NUM_THREADS)$"
)
KEPT = {"SLURM_CONF", "SLURM_CLUSTERS"}  # say which SLURM, not which job


def expand_hosts(hostlist: str) -> list[str]:
    """Names in SLURM's short form of a list of hosts: `n[1-2,07],m` is n1, n2, n07, m.

    Args:
        hostlist: Names separated by commas; each may have any number of brackets with numbers and ranges. A
            range whose first number starts with zeros keeps its width, as `scontrol show hostnames` does.

    Raises:
        ValueError: Brackets that do not close, or hold something else.
    """
    names = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", hostlist):
        # Text outside of brackets at even places, inside at odd ones.
        parts = re.split(r"\[([^\]]*)\]", item)
        if any("[" in text or "]" in text for text in parts):
            raise ValueError(f"the host list {hostlist!r} has brackets that do not close")
        choices = [[text] if i % 2 == 0 else _numbers(text, hostlist) for i, text in enumerate(parts)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _numbers(ranges: str, hostlist: str) -> list[str]:
    found = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"the host list {hostlist!r} has {part!r} where a number or a range should be")
        first, last = match[1], match[2] or match[1]
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def expand_counts(counts: str) -> list[int]:
    """Numbers in SLURM's short form of one per node: `2(x3),1` is 2, 2, 2, 1.

    Raises:
        ValueError: Something else than that.
    """
    found: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"{counts!r} is no list of counts such as 2(x3),1")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def in_step(environment: Mapping[str, str]) -> bool:
    """Whether this process is a task that srun started, and SLURM's variables are the ones to take ranks from.

    Not so where torchrun or accelerate have numbered the processes already (RANK and WORLD_SIZE are set); in a
    batch script, which has SLURM_PROCID=0 and SLURM_NTASKS=4 also where nothing runs but itself; in the shell
    of salloc; and outside of a job.
    """
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        return False
    if "SLURM_JOB_ID" not in environment or "SLURM_PROCID" not in environment:
        return False
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) >= SPECIAL_STEPS or "SLURM_STEP_NUM_TASKS" not in environment:
        return False
    # A batch script that was submitted by a task of another job inherits that task's SLURM_STEP_* variables,
    # and only the list of tasks on this node is its own. `submission_environment` avoids that; here for other
    # people's sbatch.
    here = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    return len(environment.get("SLURM_GTIDS", "," * (here - 1)).split(",")) == here


def ranks(environment: Mapping[str, str], resolve: Callable[[str], str] | None = None) -> dict[str, str] | None:
    """Variables of torch's `env://` rendezvous, for a task that srun started.

    Args:
        environment: Of the process, as os.environ.
        resolve: From the first host's name to its address; `node_address` by default.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK (the node), MASTER_ADDR and MASTER_PORT:
        the processes of this step, not of the job, whose size may differ; on several nodes also
        GLOO_SOCKET_IFNAME, the interface that leads to another node (NCCL finds its own). What the user set
        stays. None where the ranks are not SLURM's to give (see `in_step`), and for a step
        of one task.

    Raises:
        ConfigError: SLURM's variables contradict each other.
    """
    if not in_step(environment):
        return None
    rank, world_size = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
    if rank >= world_size:
        raise ConfigError(
            f"SLURM_PROCID={rank} does not fit SLURM_STEP_NUM_TASKS={world_size}: these variables come from two "
            "different jobs. Start the processes with srun, or unset SLURM_STEP_ID to run this one alone."
        )
    if world_size == 1:
        return None
    hosts = expand_hosts(environment["SLURM_STEP_NODELIST"])
    node = int(environment["SLURM_NODEID"])
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])[node]),
        "GROUP_RANK": str(node),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or (resolve or node_address)(hosts[0]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port(environment)),
    }
    if len(hosts) > 1 and "GLOO_SOCKET_IFNAME" not in environment:
        # Towards a node that is not this one: the way to this one's own name is often the loopback interface.
        other = hosts[1] if node == 0 else hosts[0]
        if interface := interface_to((resolve or node_address)(other)):
            found["GLOO_SOCKET_IFNAME"] = interface
    return found


def port(environment: Mapping[str, str]) -> int:
    """A port for the rendezvous of this step, the same on all of its tasks, other than that of its neighbours.

    Where the site lets SLURM reserve ports (MpiParams=ports=...), the step's own first one. Otherwise a function
    of job, step and restart: jobs less than 10,000 ids apart never meet in the same step and restart, and those
    less than 245 ids apart in none of 4 steps and 10 restarts (a restart may meet what is left of the try before).
    """
    reserved = re.match(r"\d+", environment.get("SLURM_STEP_RESV_PORTS", ""))
    if reserved:
        return int(reserved[0])
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", 0))
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    return FIRST_PORT + (job + 6245 * step + 9000 * restart) % PORTS


def cores_of_task(environment: Mapping[str, str], processes: int) -> int | None:
    """CPU cores that SLURM gave to this process alone; None where it does not say, or several processes share them.

    Args:
        environment: Of the process.
        processes: Ranks on this node: more than tasks where torchrun or accelerate is the task.
    """
    cores, tasks = environment.get("SLURM_CPUS_PER_TASK", ""), environment.get("SLURM_STEP_TASKS_PER_NODE")
    if not cores.isdigit() or tasks is None:
        return None
    return int(cores) if expand_counts(tasks)[int(environment["SLURM_NODEID"])] == processes else None


def node_address(name: str) -> str:
    """How to reach a node of the cluster: its name where that resolves, else the address that SLURM itself uses.

    Raises:
        RuntimeError: Neither is known.
    """
    with contextlib.suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    text = ask("scontrol", "show", "node", "-o", name)
    match = re.search(r"\bNodeAddr=(\S+)", text)
    if match is None:
        raise RuntimeError(f"the host {name} does not resolve, and scontrol knows no address for it: {text!r}")
    return match[1]


def interface_to(address: str) -> str | None:
    """Name of the network interface through which a host is reached (`eth0`), None where that cannot be told.

    gloo takes the interface that this host's own name resolves to, which is the loopback one where /etc/hosts
    has a line such as `127.0.1.1 thishost`: then nodes wait for each other for ever. Nothing is sent.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.gethostbyname(address), 9))
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # an interface without an address
                    request = struct.pack("256s", name.encode()[:15])
                    answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                    if socket.inet_ntoa(answer[20:24]) == own:
                        return name
    except OSError:
        pass
    return None


def job_name(environment: Mapping[str, str]) -> str | None:
    """What SLURM's commands call this job: `12`, or `12_3` for a task of an array; None outside of a job.

    One task of an array has the array's own number as its SLURM_JOB_ID: a command on that number alone would
    act on all of its tasks. The name stays the same when a job is requeued.
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def requeue(job: str) -> None:
    """Put a job back into the queue under its own id; SLURM ends what still runs of it.

    Args:
        job: As `job_name` gives it.

    Raises:
        RuntimeError: SLURM refuses, and why (the job was submitted with --no-requeue, or is being cancelled).
    """
    ask("scontrol", "requeue", job)


def parse_duration(text: str) -> float | None:
    """Seconds in `[days-]hours:minutes:seconds`, `minutes:seconds` or `minutes`, as SLURM prints and takes times.

    Returns:
        None for UNLIMITED and for what is not known (INVALID, NOT_SET, empty).

    Raises:
        ValueError: Something else.
    """
    text = text.strip()
    if text.upper() in {"", "UNLIMITED", "INFINITE", "INVALID", "NOT_SET", "N/A", "PARTITION_LIMIT"}:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no time of SLURM's, such as 90, 1:30:00 or 2-12:00:00")
    days, *fields = match.groups()
    first, second, third = (None if f is None else int(f) for f in fields)
    if days is not None or third is not None:
        hours, minutes, seconds = first or 0, second or 0, third or 0
    else:
        hours, minutes, seconds = 0, first or 0, second or 0
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def time_left(environment: Mapping[str, str]) -> float | None:
    """Seconds until this job's time limit; None where that cannot be told, and outside of a job.

    Asks the controller, who alone knows of a limit changed meanwhile: for one rank, and seldom. SLURM counts a
    job without a limit down from a year.
    """
    job = job_name(environment)
    if job is None:
        return None
    try:
        return parse_duration(ask("squeue", "--noheader", "--jobs", job, "--format", "%L"))
    except RuntimeError:
        end = environment.get("SLURM_JOB_END_TIME", "")  # from SLURM 23.02 on
        return float(end) - time.time() if end.isdigit() else None


def quote(arguments: Sequence[str]) -> str:
    """A line of bash that is these arguments and nothing else, whatever is in them.

    As shlex.join, but with line ends and other control characters escaped, so that it stays one line: sbatch
    refuses scripts with a carriage return at the end of a line, and looks for #SBATCH at the beginning of
    each.

    Raises:
        ValueError: A NUL character, which no argument can hold.
    """
    return " ".join(_quote(argument) for argument in arguments)


def _quote(argument: str) -> str:
    if "\0" in argument:
        raise ValueError(f"the argument {argument!r} has a NUL character, which no command line can hold")
    if not any(ord(c) < 32 or ord(c) == 127 for c in argument):
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\{ord(m[0]):03o}", escaped) + "'"


def submission_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment to call sbatch in, without the ranks, devices and job of the process that calls it.

    sbatch hands its environment on to the job. Called in a task of another job, or under torchrun, the new job
    would take RANK, MASTER_PORT, SLURM_STEP_ID or CUDA_VISIBLE_DEVICES of that one for its own.
    """
    return {k: v for k, v in environment.items() if k in KEPT or not OF_A_PROCESS.match(k)}


def sbatch_options(settings: Mapping[str, object]) -> list[str]:
    """Options of sbatch from settings (conf/cluster/) that are called as they are, with _ for -.

    Args:
        settings: `{"gpus_per_node": 8, "exclusive": True, "account": None}` is --gpus-per-node=8 --exclusive.
            None and False leave an option out; but `requeue: False` is --no-requeue, since sites may have
            requeueing as their default.
    """
    if settings.get("requeue") is False:
        settings = {**settings, "requeue": None, "no_requeue": True}
    given = {k.replace("_", "-"): v for k, v in settings.items() if v is not None and v is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def run_directory(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Where the run of a batch job keeps its files: what the user says, or a directory by the job's own name.

    Args:
        arguments: Overrides of the command line; the last `hydra.run.dir=` counts.
        environment: Of the batch script.

    Raises:
        ConfigError: It is a grid, or the directory would be another one after a requeue.
    """
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigError(
            "-m (--multirun): one batch job holds one run. For a grid as a job array, call "
            "`python launcher/train.py -m hydra/launcher=slurm ...` on the login node."
        )
    chosen = None
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        chosen = value if key == "hydra.run.dir" else chosen
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


def last_step(run_dir: Path) -> int:
    """Optimizer updates in the newest checkpoint of a run by its name, 0 without one."""
    names = (p.name.partition("step_")[2] for p in run_dir.glob("checkpoints/step_*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def begin(run_dir: Path, max_requeues: int, environment: Mapping[str, str]) -> None:
    """Note that a batch job starts (again), and refuse it where it keeps coming back and never gets further.

    Counts every way back: requeues by `end`, by SLURM after a preemption or a node failure, by hand. The
    notes are in restarts.jsonl of the run directory. An old stopped.json and failed.json go away, so that `end`
    finds only a new one.

    Args:
        run_dir: The run's directory; need not exist, and is made only where a job comes back.
        max_requeues: How often in a row the job may come back without a new checkpoint.
        environment: Of the batch script.

    Raises:
        ConfigError: It came back more often than that.
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

    Args:
        run_dir: The run's directory; its stopped.json says that and why it was stopped.
        status: That srun ended with.
        environment: Of the batch script.

    Returns:
        Whether the job goes back into the queue; SLURM then ends the batch script at any moment.

    Raises:
        RuntimeError: SLURM refuses.
    """
    job = job_name(environment)
    try:
        if job is not None and _was_stopped(run_dir, status, job):
            requeue(job)
            return True
    except _AlreadyRequeuedError:
        return True
    if status != 0 and run_dir.is_dir():
        text = failure.tail(run_dir / failure.OUTPUT)
        failure.write(run_dir, failure.said(text) or f"srun ended with exit status {status}", [status], text, job=job)
    return False


class _AlreadyRequeuedError(Exception):
    """By somebody else, who was first."""


def _was_stopped(run_dir: Path, status: int, job: str) -> bool:
    stopped = run_dir / "stopped.json"
    if status == 0 and (not stopped.exists() or json.loads(stopped.read_text()).get("reason") in ASKED):
        return False
    if status not in (0, 128 + signal.SIGUSR1, 128 + signal.SIGTERM):
        return False
    state, reason = ask("squeue", "--noheader", "--jobs", job, "--format", "%T %r").strip().split(" ", 1)
    if state in {"PENDING", "REQUEUED"}:
        raise _AlreadyRequeuedError
    # RUNNING: asked to leave (preemption, nearly out of time). At the limit itself it is ending, and says
    # why.
    if state != "RUNNING":
        return reason == "TimeLimit"
    # SIGTERM is also what srun ends the others with where one rank failed.
    if status == 128 + signal.SIGTERM:
        return re.search(r"\bPreemptTime=\d", ask("scontrol", "show", "job", "--oneliner", job)) is not None
    return True


def ask(*command: str, stdin: str = "", environment: Mapping[str, str] | None = None, with_errors: bool = False) -> str:
    """What one of SLURM's commands prints.

    Args:
        *command: The command.
        stdin: What it reads.
        environment: For it; None for that of this process.
        with_errors: Also what it prints on standard error, where `sbatch --test-only` answers.

    Raises:
        RuntimeError: It is not there, does not answer, or refuses, and what it says.
    """
    try:
        done = subprocess.run(command, input=stdin, env=environment, text=True, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{shlex.join(command)}: {error}") from error
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout + (done.stderr if with_errors else "")


USAGE = """What batch scripts call:
  python -m launcher.slurm directory [OVERRIDE ...]         print the run directory of this job
  python -m launcher.slurm directory --task FILE            the same, for a point of a grid
  python -m launcher.slurm begin MAX_REQUEUES DIRECTORY     note that the job starts; status 1 if it never gets further
  python -m launcher.slurm end STATUS DIRECTORY             requeue the job if its run was stopped and not finished"""


def main(arguments: Sequence[str]) -> int:
    """Do what USAGE says. No argparse: overrides may look like options."""
    environment = os.environ
    try:
        match list(arguments):
            case ["directory", "--task", file]:
                print(json.loads(Path(file).read_text(encoding="utf-8"))["run_dir"])
            case ["directory", *overrides]:
                from launcher import config

                found = run_directory(overrides, environment)
                config.check_writable(Path(found))
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
