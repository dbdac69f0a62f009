"""Real processes for tests, forked from one that has imported torch already: ready in 0.05 s instead of 4 s."""

import ctypes
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from launcher.distributed.stop_request import SIGNALS

REPOSITORY = Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["processes_preloaded"])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Run:
    """The ranks of one run of the real program."""

    processes: list
    directory: Path  # holds out.<rank> and err.<rank>
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout=60):
        """Wait for the end of every rank; those still there after `timeout` seconds are killed, and it fails."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        hung = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        for rank in hung:
            self.processes[rank].kill()
            self.processes[rank].join()
        assert not hung, f"ranks {hung} hung:\n" + "".join(self.err(rank) for rank in range(len(self.processes)))
        return self

    @property
    def status(self):
        return [process.exitcode for process in self.processes]

    def signal(self, rank, number=signal.SIGKILL):
        os.kill(self.processes[rank].pid, number)

    def out(self, rank=0):
        return (self.directory / f"out.{rank}").read_text()

    def err(self, rank=0):
        return (self.directory / f"err.{rank}").read_text()

    def ok(self, timeout=60):
        self.wait(timeout)
        errors = "".join(self.err(rank) for rank in range(len(self.processes)))
        assert self.status == [0] * len(self.processes), f"{self.status}\n{errors}"
        return self


def _rank(function, arguments, environment, directory, rank, delay):
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked where a test of loaders has started the parent
    for stream, name in ((1, "out"), (2, "err")):
        handle = os.open(directory / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(key, None)
    os.environ.update(environment)
    time.sleep(delay)
    function(*arguments)


def start(function, arguments, directory, world=1, environment=None, delays=()):
    """Start `world` ranks that each call function(*arguments) in a process of their own.

    Args:
        function: Importable by name from a test module or the package.
        arguments: What to call it with.
        directory: Where each rank's output goes.
        world: Number of ranks; with more than 1, torch.distributed's variables are set.
        environment: More variables.
        delays: Seconds that each rank waits first.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(world):
        variables = {"WANDB_MODE": "disabled"}
        if world > 1:
            variables |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        variables |= environment or {}
        delay = delays[rank] if rank < len(delays) else 0
        process = CONTEXT.Process(target=_rank, args=(function, arguments, variables, directory, rank, delay))
        process.start()
        processes.append(process)
    return Run(processes, directory)


def without_pictures():
    """Let this process draw nothing at the end of a run: half of the time that a small one takes."""
    importlib.import_module("launcher.run.curves").Curves.write_png = lambda self, path: None
    importlib.import_module("launcher.run.report").write_report = lambda path, drawn: None


def _command(name, argv, working_directory, pictures=True):
    if not pictures:
        without_pictures()
    os.chdir(working_directory)
    sys.path.insert(0, str(working_directory))
    if name == "train":
        sys.argv = [str(REPOSITORY / "launcher/train.py"), *argv]
        importlib.import_module("launcher.train").main()
    else:
        sys.argv = [str(REPOSITORY / "launcher/__main__.py"), name.replace("_", "-"), *argv]
        importlib.import_module("launcher.__main__").main()


def train(argv, directory, world=1, environment=None, delays=(), name="io", pictures=False):
    """Start the real training program with a command line, in the working directory `directory`.

    Args:
        argv: Words of the command line.
        directory: Working directory.
        world: Number of ranks.
        environment: More variables.
        delays: Seconds that each rank waits first.
        name: Of the directory for each rank's output.
        pictures: Whether the run draws its curves and its page, for a test that looks at them.
    """
    quiet = [] if any(word.startswith("wandb.mode") for word in argv) else ["wandb.mode=disabled"]
    return command("train", [*argv, *quiet], directory, world, environment, delays, name, pictures)


def command(program, argv, directory, world=1, environment=None, delays=(), name="io", pictures=True):
    """Start one of the programs of launcher/, such as "evaluate", in the working directory `directory`."""
    arguments = (program, list(argv), Path(directory), pictures)
    return start(_command, arguments, Path(directory) / name, world, environment, delays)


def first_weights(argv, directory):
    """The weights that a run begins with: those of one in directory/begun whose learning rate changes nothing."""
    from safetensors.torch import load_file

    place = Path(directory) / "begun"
    place.mkdir()
    kept = [word for word in argv if not word.startswith(("optimizer.lr", "max_steps"))]
    train([*kept, "optimizer.lr=1e-30", "max_steps=1", "hydra.run.dir=run"], place).ok()
    return load_file(place / "run/checkpoints/step_00000001/model.safetensors")


def own(directory):
    """The module own.py of a directory, in this process, where there may be others of that name."""
    spec = importlib.util.spec_from_file_location("own", Path(directory) / "own.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_privileges(program, argv, directory):
    """One of the programs, without what lets root write whatever the modes say; for `start`."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower 32 capabilities, then the upper
    assert libc.capget(header, sets) == 0
    for i in (0, 1):
        sets[i] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    assert libc.capset(header, sets) == 0
    _command(program, argv, directory)


def rows(directory):
    """The record of a run, from its directory."""
    return [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]


def summary(directory):
    """The summary of a run, from its directory."""
    return json.loads((Path(directory) / "summary.json").read_text())
