"""A real SLURM on this machine for the length of a test session: a controller, node daemons, munge, pretended GPUs.

Nothing outside one temporary directory is touched: configuration, state, spool, logs, munge's key and socket
are there, ports are free ones, and a system's own SLURM or munge is neither used nor seen (every client
command gets SLURM_CONF). All processes are below one keeper (keeper.py), which ends them and removes the
directory when the session ends, however it ends.

In a test: `def test_x(slurm): job = slurm.sbatch("hostname"); slurm.wait(job); slurm.output(job)`.
By hand: `python tests/slurm_cluster.py` opens a shell in which sbatch, srun and squeue talk to a fresh
cluster.
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "salloc", "scontrol", "squeue", "sinfo", "scancel")
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again after this many seconds; 120 by default.
AuthInfo=socket={directory}/munge.socket,cred_expire={requeue_delay}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log
MailProg=/bin/true
MpiDefault=none
# No cgroups: processes are found by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Nodes may claim more CPUs and memory than this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
# Seconds until a silent node counts as down, and from TERM to KILL at a time limit.
SlurmdTimeout=10
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT RealMemory=64000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} MaxTime=INFINITE
PartitionName=gpu Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
"""


def missing() -> str | None:
    """Why there can be no cluster here, in words; None where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)} not found): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a throw-away SLURM needs root (its daemons start jobs as the user who submits)"
    return None


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, below the range that the system gives to outgoing connections."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(12000, 20000), 500):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"found {len(found)} free ports of {count} between 12000 and 20000")


class Cluster:
    """A running SLURM of several nodes on this machine; a context manager.

    Partitions are `main` (the default), `gpu`, and `urgent`, whose jobs those of the other two are requeued for.

    Args:
        nodes: How many nodes; they are called n1, n2, ...
        cpus: CPUs that each node claims, whatever this machine has.
        gpus: Pretended GPUs of each node.
        grace: Seconds from a preempted job's TERM to its KILL.
        requeue_delay: Seconds that a requeued job waits at least.
    """

    def __init__(self, nodes: int = 2, cpus: int = 16, gpus: int = 2, grace: int = 10, requeue_delay: int = 5) -> None:
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-")).resolve()
        self.directory.chmod(0o755)  # munge's clients may be other users
        for name in ("state", "spool", "jobs"):
            (self.directory / name).mkdir()
        foreign = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SCANCEL|SCONTROL|MUNGE)")
        self.environment = {k: v for k, v in os.environ.items() if not foreign.match(k)}
        self.environment |= {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": SEARCH}
        self._configure(cpus, gpus, grace, requeue_delay)
        self._keeper = subprocess.Popen(
            [sys.executable, "-S", str(Path(__file__).with_name("keeper.py")), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,  # a Ctrl-C at the terminal is for the tests, which then close the pipe
        )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _configure(self, cpus: int, gpus: int, grace: int, requeue_delay: int) -> None:
        host = socket.gethostname().partition(".")[0]
        port, *node_ports = free_ports(1 + len(self.nodes))
        conf = CONF.format(host=host, port=port, directory=self.directory, grace=grace, requeue_delay=requeue_delay)
        for name, node_port in zip(self.nodes, node_ports, strict=True):
            conf += f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={node_port} CPUs={cpus}"
            conf += f" Gres=gpu:{gpus}\n" if gpus else "\n"
        (self.directory / "slurm.conf").write_text(conf)
        # SLURM wants a character device per GPU, and without cgroups never opens it. Jobs get CUDA_VISIBLE_DEVICES=0,1
        # as on a GPU node. Links, not mknod: containers without that right will do.
        devices = [self.directory / f"gpu{i}" for i in range(gpus)]
        for device in devices:
            device.symlink_to("/dev/null")
        lines = [f"NodeName={name} Name=gpu File={device}\n" for name in self.nodes for device in devices]
        (self.directory / "gres.conf").write_text("".join(lines))
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _start(self) -> None:
        d = self.directory
        files = [f"--{name}-file={d}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        self.spawn("munged", ["munged", "-F", "--force", f"--socket={d}/munge.socket", *files])
        self._until("munge's socket", 10, (d / "munge.socket").exists)
        self.spawn("slurmctld", ["slurmctld", "-c", "-D", "-f", self.environment["SLURM_CONF"]])
        for name in self.nodes:
            self.start_node(name)
        self._until("idle nodes", 30, lambda: set(self.node_states().values()) == {"idle"})

    def _until(self, what: str, timeout: float, condition) -> None:
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"no {what} after {timeout} s\n{self.logs()}")
            time.sleep(0.05)

    def spawn(self, name: str, argv: list[str]) -> int:
        """Start a command that ends with the cluster at the latest; its output goes to NAME.out. Returns its pid."""
        path = shutil.which(argv[0], path=SEARCH)
        assert path is not None and self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.write(json.dumps({"name": name, "argv": [path, *argv[1:]]}).encode() + b"\n")
        self._keeper.stdin.flush()
        return json.loads(self._keeper.stdout.readline())["pid"]

    def stop(self) -> None:
        """End every process of the cluster and its jobs and remove its directory."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.close()
        status = self._keeper.wait(20)
        self._keeper.stdout.close()
        assert status == 0, f"the keeper ended with {status}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *argv: str | Path, timeout: float = 60, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run a command that talks to this cluster, such as `run("srun", "-n2", "hostname")`, and wait for it.

        Args:
            *argv: The command.
            timeout: Seconds.
            check: Raise if it ends with another status than 0, with what it printed.
            **options: For subprocess.run; `env` is added to the cluster's environment.
        """
        environment = self.environment | options.pop("env", {})
        done = subprocess.run(
            [str(a) for a in argv], env=environment, text=True, capture_output=True, timeout=timeout, **options
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{shlex.join(map(str, argv))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sbatch(
        self,
        script: str | Path,
        *arguments: str,
        options: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Submit a batch job and return its id.

        Args:
            script: A file, or the text of a script (`#!/bin/bash` may be left out).
            *arguments: What the script gets as "$@".
            options: Of sbatch itself, such as "--nodes=2".
            env: Added to the environment of sbatch, and so to the job's.
            cwd: Working directory of the job; its output is in the cluster's `jobs` directory (see `output`).
        """
        if isinstance(script, str):
            text = script if script.startswith("#!") else f"#!/bin/bash\n{script}"
            number, path = tempfile.mkstemp(suffix=".sh", dir=self.directory / "jobs")
            with os.fdopen(number, "w") as file:
                file.write(text)
            script = Path(path)
        where = f"--output={self.directory}/jobs/%A_%a.out" if _is_array(options) else f"--output={self._log('%j')}"
        done = self.run("sbatch", "--parsable", where, *options, script, *arguments, env=dict(env or {}), cwd=cwd)
        return done.stdout.strip().partition(";")[0]

    def _log(self, job: str) -> Path:
        return self.directory / "jobs" / f"{job}.out"

    def output(self, job: str) -> str:
        """What a batch job printed so far; for a task of an array, name it ARRAYJOB_TASK."""
        path = self._log(job)
        return path.read_text(errors="backslashreplace") if path.exists() else ""

    def show(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` says: a record per job (several for an array), name to value."""
        text = self.run("scontrol", "show", "job", "-o", job).stdout
        # Not by line: `Command` shows the script's arguments as they are, with their line ends.
        records = re.split(r"^(?=JobId=\d+ )", text, flags=re.MULTILINE)[1:]
        fields = re.compile(r"(?:^|\s)([A-Z][\w/:]*)=(.*?)(?=\s[A-Z][\w/:]*=|$)", re.DOTALL)
        return [dict(reversed(fields.findall(record))) for record in records]  # the first of a name counts

    def wait(self, job: str, *states: str, restarts: int = 0, timeout: float = 60) -> dict[str, str]:
        """Wait for a job, and return its record.

        Args:
            job: Its id, as `5`, or `5_2` for a task of an array.
            *states: Come back once it is in one of these, such as "RUNNING"; without any, once it has ended.
            restarts: And was restarted at least this many times.
            timeout: Seconds; after them TimeoutError with what the job printed and the daemons logged.
        """
        wanted = set(states) or ENDED
        record: dict[str, str] = {}

        def reached() -> bool:
            nonlocal record
            (record,) = self.show(job)
            return record["JobState"] in wanted and int(record["Restarts"]) >= restarts

        try:
            self._until(f"job {job} in {sorted(wanted)}", timeout, reached)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{record}\n---- output\n{self.output(job)}") from None
        return record

    def wait_array(self, job: str, timeout: float = 60) -> list[dict[str, str]]:
        """Wait until every task of an array has ended; their records in the order of the tasks."""
        records: list[dict[str, str]] = []

        def ended() -> bool:
            nonlocal records
            records = self.show(job)
            return all(r["JobState"] in ENDED for r in records)

        self._until(f"end of array {job}", timeout, ended)
        return sorted(records, key=lambda r: int(r["ArrayTaskId"]))

    def wait_output(self, job: str, text: str, timeout: float = 30) -> str:
        """Wait until a job has printed something; returns all that it printed."""
        self._until(
            f"{text!r} from job {job}, which printed {self.output(job)!r}", timeout, lambda: text in self.output(job)
        )
        return self.output(job)

    def cancel(self, *jobs: str) -> None:
        """End jobs and wait until they are gone."""
        self.run("scancel", *jobs)
        for job in jobs:
            self._until(f"end of {job}", 30, lambda job=job: all(r["JobState"] in ENDED for r in self.show(job)))

    def squeue(self) -> list[str]:
        """A line `ID STATE REASON` for each job that has not ended."""
        return self.run("squeue", "-h", "-r", "-o", "%i %T %r").stdout.splitlines()

    def node_states(self) -> dict[str, str]:
        """State of each node that the controller knows (idle, mixed, allocated, down ...); none before it answers."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False).stdout.splitlines()
        return {name: state.rstrip("*") for name, state in (line.split() for line in lines)}

    def start_node(self, name: str) -> int:
        """Start a node's daemon (again)."""
        return self.spawn(name, ["slurmd", "-D", "-f", self.environment["SLURM_CONF"], "-N", name])

    def kill_node(self, name: str, tasks: bool = True) -> None:
        """SIGKILL a node's daemon and, as if power was cut, all that runs on the node.

        Args:
            name: The node.
            tasks: False kills the daemon alone; what it had started goes on.
        """
        victims = [int((self.directory / f"{name}.pid").read_text())]
        if tasks:
            below = self.processes(node=name)
            victims += {_parent(pid) for pid in below} - {self._keeper.pid, 0} | set(below)
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def processes(self, node: str | None = None, job: str | None = None) -> list[int]:
        """Pids of the processes that run in jobs, by the variables they were started with.

        Args:
            node: Those on this node only.
            job: Those of this job only.
        """
        wanted = [f"{k}={v}" for k, v in (("SLURMD_NODENAME", node), ("SLURM_JOB_ID", job)) if v is not None]
        conf, found = f"SLURM_CONF={self.environment['SLURM_CONF']}", []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    variables = set((entry / "environ").read_bytes().decode(errors="replace").split("\0"))
                except OSError:  # it ended meanwhile
                    continue
                started_here = any(v.startswith("SLURMD_NODENAME=") for v in variables)
                if conf in variables and started_here and variables.issuperset(wanted):
                    found.append(int(entry.name))
        return found

    def logs(self, lines: int = 20) -> str:
        """The end of every daemon's log, for messages."""
        parts = []
        for path in sorted(self.directory.glob("*.log")) + sorted(self.directory.glob("*.out")):
            end = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"---- {path.name}", *end]))
        return "\n".join(parts)


def _is_array(options: tuple[str, ...]) -> bool:
    return any(o.startswith(("--array", "-a")) for o in options)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real SLURM of two nodes with 16 CPUs and 2 pretended GPUs each; skips where there can be none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with Cluster() as cluster:
        print(f"SLURM_CONF={cluster.environment['SLURM_CONF']}; leave the shell and all is gone", flush=True)
        subprocess.run(sys.argv[1:] or [os.environ.get("SHELL", "/bin/bash")], env=cluster.environment)


def found(output, word):
    return [json.loads(line.split(" ", 1)[1]) for line in output.splitlines() if line.startswith(f"{word} ")]
