"""How each contender is started and read: the peers' scripts, and the launcher.

This module and compare.py do not import torch: a child's peak memory, as the kernel reports it, begins with
that of the process that forks it.
"""

import fcntl
import importlib.util
import json
import os
import pty
import signal
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
BATCH = 64
WARM, LOG_EVERY = 50, 50  # as in peers/workload.py

# What the launcher is told so that it does the peers' work.
SAME_WORK = [
    "data=fashion_mnist",
    "data.validation=0.1",
    "data.flip=false",
    "data.shift=0",
    "optimizer=sgd",
    "optimizer.lr=0.05",
    "optimizer.momentum=0.9",
    "scheduler=cosine",
    "scheduler.interval=step",
    "loss=cross_entropy",
    f"batch.global_size={BATCH}",
    "device=cpu",
]
MODELS = {
    "mlp": ["model=mlp", "model.hidden=[64]", "model.dropout=0"],
    # The peers' own model, as a user brings theirs: the launcher's cnn normalises between its layers.
    "cnn": ["model._target_=benchmarks.peers.workload.build_model", "+model.workload=cnn"],
}
FEATURES_ON = [
    "wandb.mode=offline",
    f"log_every={LOG_EVERY}",
]  # validation, checkpoints, progress: the defaults
FEATURES_OFF = [
    "wandb.mode=disabled",
    f"log_every={LOG_EVERY}",
    "eval_every=null",
    "checkpoint.every=null",
    "checkpoint.best=null",
]
RECIPE = ["mixed_precision=bf16", "channels_last=true"]  # what the project recommends for convolutions
IMAGE_FOLDER = [
    "data=image_folder",
    "data.min_scale=0.08",  # of torchvision's RandomResizedCrop
    "model._target_=benchmarks.peers.image_folder.build_model",
    "optimizer=sgd",
    f"batch.global_size={BATCH}",
    "device=cpu",
    "wandb.mode=disabled",
    "eval_every=null",
    "checkpoint.every=null",
    "checkpoint.best=null",
    "num_workers=2",
]


class RunFailed(Exception):
    """A contender's process failed; the message is the end of what it printed."""


@dataclass(frozen=True)
class Contender:
    """One way to do a suite's work.

    Args:
        name: As the tables call it.
        script: File under peers/; None is the launcher.
        workload: `mlp` or `cnn`.
        features: Metrics, W&B offline, progress and checkpoints on.
        processes: Training processes.
        needs: Packages that must be importable.
        torchrun: Whether torchrun starts the processes (Lightning starts its own).
        overrides: Further settings for the launcher.
    """

    name: str
    script: str | None
    workload: str
    features: bool = False
    processes: int = 1
    needs: tuple[str, ...] = ()
    torchrun: bool = True
    overrides: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        if self.script is None and not (REPOSITORY / "launcher" / "train.py").is_file():
            return "launcher/train.py does not exist"
        absent = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"{', '.join(absent)} not installed (pip install -e '.[bench]')" if absent else None


def launcher_command(
    workload: str,
    steps: int,
    seed: int,
    run_dir: Path,
    data: Path,
    features: bool,
    threads: int,
    processes: int = 1,
    overrides: tuple[str, ...] = (),
) -> list[str]:
    """The command by which the launcher does a peer's work, in `run_dir`, from the repository root."""
    return [
        *python_command(processes),
        "launcher/train.py",
        *SAME_WORK,
        *MODELS[workload],
        *(FEATURES_ON if features else FEATURES_OFF),
        f"data.root={data}",
        f"max_steps={steps}",
        f"epochs={steps // 843 + 1}",  # no fewer than max_steps, which then ends the run
        f"seed={seed}",
        f"threads={threads}",
        f"hydra.run.dir={run_dir}",
        *overrides,
    ]


def read_launcher(run_dir: Path, started: float, steps: int, warm: int = WARM) -> dict[str, Any]:
    """A run's measurement, from its directory alone.

    The rate is taken from the clock times of the rows in timings.jsonl, from step 50 to the last row before
    the final step: validation and checkpoints that fall in between count, those after the final step do not,
    as with the peers.

    Raises:
        RunFailed: The run did not reach its last step, or logged too little to tell its rate.
    """
    summary = json.loads((run_dir / "summary.json").read_text())
    if summary["step"] != steps:
        raise RunFailed(f"summary.json: step {summary['step']} ({summary['status']}), not {steps}")
    timings = [json.loads(line) for line in (run_dir / "timings.jsonl").read_text().splitlines()]
    timed = [row for row in timings if warm <= row["step"] < steps]
    if len(timed) < 2 or timed[0]["step"] > warm + LOG_EVERY or timed[-1]["step"] < steps - LOG_EVERY:
        raise RunFailed(f"timings.jsonl has rows at steps {[row['step'] for row in timings][:5]}... only")
    first, last = timed[0], timed[-1]
    rate = (last["step"] - first["step"]) / (last["time"] - first["time"])
    final = summary.get("final", {})
    waits = [row["data_wait"] for row in timed if row.get("data_wait") is not None]
    return {
        "steps": steps,
        "steps_per_second": rate,
        "steps_per_second_of_summary": summary.get("steps_per_second"),
        "peak_memory_mb": summary.get("peak_memory_mb"),
        "seconds_to_step_51": first["time"] - started + (warm + 1 - first["step"]) / rate,
        "data_wait": statistics.fmean(waits) if waits else None,
        "train_loss": final.get("train/loss"),
        "test_loss": final.get("test/loss"),
        "test_accuracy": final.get("test/accuracy"),
    }


def python_command(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def environment(threads: int, started: float) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "ACCELERATE_USE_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        "TERM": "xterm-256color",
        "BENCHMARK_STARTED": repr(started),
    }


def execute(
    argv: list[str], cwd: Path, threads: int, log: Path, timeout: float, terminal: bool
) -> tuple[float, float, float]:
    """Run a command to its end.

    Args:
        argv: The command.
        cwd: Directory to run it in.
        threads: OMP_NUM_THREADS of its processes.
        log: Takes everything it prints.
        timeout: Seconds after which it is killed with all its processes.
        terminal: Whether it prints to a (pseudo) terminal, where progress bars are alive.

    Returns:
        Unix time of the start, seconds to the end, and the peak resident memory of its largest process in MB.

    Raises:
        RunFailed: It ended with a status other than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    started = time.time()
    process = subprocess.Popen(
        argv, cwd=cwd, env=environment(threads, started), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=writer, stderr=writer,
    )  # fmt: skip
    os.close(writer)

    def drain() -> None:
        with log.open("wb") as file:
            try:
                while chunk := os.read(reader, 1 << 16):
                    file.write(chunk)
            except OSError:  # how a pseudo terminal says that its last writer has gone
                pass
        os.close(reader)

    drained = threading.Thread(target=drain, daemon=True)
    drained.start()
    timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.time() - started
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    drained.join(timeout=5)  # a service that outlives the run may hold its output open
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise RunFailed(f"exit status {process.returncode} after {seconds:.0f} s: {' '.join(argv)}\n{tail}")
    return started, seconds, usage.ru_maxrss / 1024


def run(
    contender: Contender, steps: int, seed: int, scratch: Path, data: Path, threads: int, timeout: float
) -> dict[str, Any]:
    """Run a contender once and return its measurement.

    Raises:
        RunFailed: It failed, or left no measurement.
    """
    scratch.mkdir(parents=True)
    log = scratch / "printed.txt"
    if contender.script is None:
        directory = scratch / "run"
        command = launcher_command(
            *(contender.workload, steps, seed, directory, data, contender.features, threads),
            *(contender.processes, contender.overrides),
        )
        started, seconds, memory = execute(command, REPOSITORY, threads, log, timeout, contender.features)
        measured = read_launcher(directory, started, steps)
    else:
        report = scratch / "report.json"
        command = [
            *python_command(contender.processes if contender.torchrun else 1),
            *(str(BENCHMARKS / "peers" / contender.script), contender.workload),
            *("--steps", str(steps), "--batch", str(BATCH), "--seed", str(seed), "--threads", str(threads)),
            *("--features", "on" if contender.features else "off", "--processes", str(contender.processes)),
            *("--data", str(data), "--report", str(report)),
        ]
        started, seconds, memory = execute(command, scratch, threads, log, timeout, contender.features)
        if not report.is_file():
            raise RunFailed(f"no report from {' '.join(command)}")
        measured = json.loads(report.read_text())
    return measured | {
        "command_seconds": seconds,
        # What rank 0 says itself, before the interpreter goes down, which touches another 0.1 GB of torch's files
        "peak_memory_mb_reported": measured.get("peak_memory_mb"),
        "peak_memory_mb": memory,
    }
