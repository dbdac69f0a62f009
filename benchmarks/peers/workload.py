"""What every peer has in common: the data, the models, the command line, the clock and the report.

The peers differ in their training loops alone. The work: Fashion-MNIST, 54,000 images to train on and 6,000
to validate, standardised; cross-entropy; SGD with momentum; a learning rate annealed by a cosine at every
step; 64 samples an update whatever the number of processes; float32; a fixed number of CPU threads a process.
"""

import argparse
import gzip
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

LEARNING_RATE = 0.05
MOMENTUM = 0.9
VALIDATION = 6_000
MEAN, STD = 0.2860, 0.3530
WARM = 50  # steps before the rate is timed
LOG_EVERY = 50


@dataclass
class Data:
    """Inputs [n, 1, 28, 28] float32, standardised, and targets [n] int64 of each part."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def read_idx(path: Path) -> Tensor:
    """An array in the IDX format of MNIST, as uint8."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def load_data(root: Path) -> Data:
    def part(name: str) -> tuple[Tensor, Tensor]:
        inputs = read_idx(root / f"{name}-images-idx3-ubyte.gz").unsqueeze(1).float()
        return inputs.div_(255).sub_(MEAN).div_(STD), read_idx(root / f"{name}-labels-idx1-ubyte.gz").long()

    inputs, targets = part("train")
    return Data(
        (inputs[:-VALIDATION], targets[:-VALIDATION]),
        (inputs[-VALIDATION:], targets[-VALIDATION:]),
        part("t10k"),
    )


def build_model(workload: str) -> nn.Module:
    """`mlp`: 784-64-10, so small that a step is nearly all overhead. `cnn`: nearly all arithmetic."""
    if workload == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


@dataclass
class Options:
    workload: str
    steps: int
    batch: int
    seed: int
    threads: int
    features: bool
    processes: int
    data: Path
    report: Path | None


def parse_options(features: bool) -> Options:
    """The command line of a peer; sets the threads and the seed.

    Args:
        features: Whether this peer has metrics, tracking, progress and checkpoints to switch on.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=("mlp", "cnn"))
    parser.add_argument("--steps", type=int, required=True, help=f"optimizer updates, at least {WARM + 2}")
    parser.add_argument("--batch", type=int, default=64, help="samples an update, over all processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a process")
    parser.add_argument("--features", choices=("on", "off") if features else ("off",), default="off")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--report", type=Path, help="write the JSON line here too")
    options = Options(**vars(parser.parse_args()))
    options.features = options.features == "on"
    if options.steps < WARM + 2:
        parser.error(f"--steps {options.steps}: at least {WARM + 2}, the first {WARM} are not timed")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


class Clock:
    """Told after each optimizer update; reads the time after three of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    def tick(self) -> None:
        self.done += 1
        if self.done == WARM:
            self.begin = time.perf_counter()
        elif self.done == WARM + 1:
            self.reached = time.time()
        elif self.done == self.steps:
            self.end = time.perf_counter()

    @property
    def steps_per_second(self) -> float:
        """From the end of step 50 to the end of the last, with whatever the peer does in between."""
        return (self.steps - WARM) / (self.end - self.begin)


def process_start() -> float:
    """Unix time at which the command was given (from compare.py), or at which this process started."""
    if "BENCHMARK_STARTED" in os.environ:
        return float(os.environ["BENCHMARK_STARTED"])
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


def peak_memory_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


@torch.no_grad()
def measure(model: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a model over a part of the data."""
    model.eval()
    loss, correct, (inputs, targets) = 0.0, 0, part
    for x, y in zip(inputs.split(500), targets.split(500), strict=True):
        outputs = model(x)
        loss += nn.functional.cross_entropy(outputs, y, reduction="sum").item()
        correct += int((outputs.argmax(1) == y).sum())
    return loss / len(targets), correct / len(targets)


def report(peer: str, options: Options, clock: Clock, model: nn.Module, data: Data) -> None:
    """Print the JSON line. Peak memory is read before the model is measured, which is no part of the work."""
    assert clock.done == options.steps, f"{clock.done} steps done of {options.steps}"
    assert torch.get_num_threads() == options.threads, f"{torch.get_num_threads()} threads, not {options.threads}"
    memory = peak_memory_mb()
    train_loss, _ = measure(model, (data.train[0][:10_000], data.train[1][:10_000]))
    test_loss, test_accuracy = measure(model, data.test)
    line = json.dumps(
        {
            "peer": peer,
            "workload": options.workload,
            "features": options.features,
            "processes": options.processes,
            "steps": options.steps,
            "seed": options.seed,
            "steps_per_second": clock.steps_per_second,
            "seconds_to_step_51": clock.reached - process_start(),
            "peak_memory_mb": memory,
            "train_loss": train_loss,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
    )
    print(line, flush=True)
    if options.report is not None:
        options.report.write_text(line + "\n")
