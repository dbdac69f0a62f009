"""What SLURM knows of this process and its job. Its imports are the standard library's: batch scripts have no other."""

import contextlib
import itertools
import re
import socket
from collections.abc import Mapping

from launcher.core.errors import ConfigError
from launcher.distributed import slurm_commands

# Below the ports that Linux gives to outgoing connections (32768 and up) and above those of common services.
FIRST_PORT, PORTS = 20_000, 10_000
# Step ids from here on are no srun of the user's: batch script, external, interactive, pending.
SPECIAL_STEPS = 0xFFFF_FFF0


def expand_hosts(hostlist: str) -> list[str]:
    """Names in SLURM's short form of a list of hosts: `n[1-2,07],m` is n1, n2, n07, m.

    Raises:
        ValueError: Brackets that do not close, or hold something else than numbers and ranges.
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
        # As wide as the first one, which may start with zeros; so does `scontrol show hostnames`.
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
    """Whether this process is a task that srun started, and SLURM's variables are the ones to take ranks from."""
    if environment.get("RANK") and environment.get("WORLD_SIZE"):  # torchrun or accelerate have numbered the processes
        return False
    # A batch script has SLURM_PROCID=0 and SLURM_NTASKS=4 also where nothing runs but itself.
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) >= SPECIAL_STEPS:
        return False
    if not {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return False
    # A batch script that was submitted by a task of another job inherits that task's SLURM_STEP_* variables,
    # and only the list of tasks on this node is its own. `submission_environment` avoids that; here for other
    # people's sbatch.
    here = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    return len(environment.get("SLURM_GTIDS", "," * (here - 1)).split(",")) == here


def ranks(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Variables of torch's `env://` rendezvous, for a task that srun started.

    They count the processes of this step, not of the job, whose size may differ. What the user set stays.

    Returns:
        None where the ranks are not SLURM's to give (see `in_step`), and for a step of one task.

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
        "MASTER_ADDR": environment.get("MASTER_ADDR") or node_address(hosts[0]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port(environment)),
    }
    if len(hosts) > 1 and "GLOO_SOCKET_IFNAME" not in environment:
        # Towards a node that is not this one: the way to this one's own name is often the loopback interface. NCCL
        # finds its own.
        other = hosts[1] if node == 0 else hosts[0]
        if interface := interface_to(node_address(other)):
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

    So many `processes` are ranks on this node: more than tasks where torchrun or accelerate is the task.
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
    return slurm_commands.node_address(name)


def interface_to(address: str) -> str | None:
    """Name of the network interface through which a host is reached (`eth0`), None where that cannot be told.

    gloo takes the interface that this host's own name resolves to, which is the loopback one where /etc/hosts
    has a line such as `127.0.1.1 thishost`: then nodes wait for each other for ever. Nothing is sent.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.gethostbyname(address), 9))
            own = probe.getsockname()[0]
    except OSError:
        return None
    import psutil

    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if own in (one.address for one in addresses)), None)


def job_name(environment: Mapping[str, str]) -> str | None:
    """What SLURM's commands call this job: `12`, or `12_3` for a task of an array; None outside of a job.

    One task of an array has the array's own number as its SLURM_JOB_ID: a command on that number alone would
    act on all of its tasks. The name stays the same when a job is requeued.
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")
