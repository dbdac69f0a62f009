"""What grows with a run and with its data: python benchmarks/growth.py [steps] [data].

- steps: time of a step and memory, early and late in a run of 100,000 steps
- data: from the command to the first step, and the seek to a step, for 10 thousand to 100 million samples on disk
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "launcher/train.py")

# A user's own source: a memory-mapped file, of which only what a batch needs is ever read.
SOURCE = """
import torch
from launcher.data import Data, TensorSplit

def load(samples):
    def part(n):
        inputs = torch.from_file("inputs.bin", shared=False, size=n * 16, dtype=torch.uint8).view(n, 16)
        targets = torch.from_file("targets.bin", shared=False, size=n * 8, dtype=torch.uint8).view(torch.int64)
        return TensorSplit(inputs, targets, prepare=torch.Tensor.float)
    return Data("mapped", "classification", (16,), 2, part(samples), part(1000), part(1000))
"""


def run(place, *words):
    """Run the launcher; the rows of its timings and its summary."""
    subprocess.run(
        [sys.executable, TRAIN, *words, "eval_every=null", "checkpoint.best=null", "device=cpu", "threads=1",
         "wandb.mode=disabled", "hydra.run.dir=run"],
        cwd=place, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    rows = [json.loads(line) for line in (place / "run/timings.jsonl").read_text().splitlines()]
    return rows, json.loads((place / "run/summary.json").read_text())


def steps(work):
    """Rates and memory along a run of 100,000 steps."""
    rows, _ = run(work, "epochs=5000", "max_steps=100000", "model.hidden=[8]", "log_every=500",
                  "checkpoint.every=10000")  # fmt: skip
    for low, high in ((1000, 10_000), (45_000, 55_000), (90_000, 99_500)):
        part = [row for row in rows if low <= row["step"] <= high]
        rate = statistics.median(row["steps_per_second"] for row in part)
        print(f"steps {low:6,} to {high:7,}: {1e6 / rate:6.0f} us a step, {part[-1]['memory_mb']:.0f} MB at most")


def data(work):
    """Start and seek on data of four sizes."""
    (work / "own.py").write_text(SOURCE)
    for samples in (10_000, 1_000_000, 100_000_000):
        for name, size in (("inputs", 16), ("targets", 8)):
            with (work / f"{name}.bin").open("wb") as file:
                os.truncate(file.fileno(), samples * size)  # zeros that take no room on the disk
        seconds = []
        for _ in range(3):
            began = time.time()
            rows, summary = run(work, "data._target_=own.load", f"+data.samples={samples}", "max_steps=50",
                                "log_every=1", "checkpoint.every=null", "model.hidden=[8]")  # fmt: skip
            seconds.append(rows[0]["time"] - began)
            subprocess.run(["rm", "-r", str(work / "run")], check=True)
        print(
            f"{samples:11,} samples: first step after {statistics.median(seconds):.2f} s, "
            f"{summary['peak_memory_mb']:.0f} MB at most"
        )
    sys.path.insert(0, str(ROOT))
    from launcher.batching.sampling import permute

    for samples in (10_000, 1_000_000, 100_000_000, 10**12):
        took = []
        for _ in range(50):
            began = time.perf_counter()
            permute(range(samples - 64, samples), samples, 7)
            took.append(time.perf_counter() - began)
        print(f"{samples:17,} samples: order of the last batch of an epoch in {1e6 * statistics.median(took):.0f} us")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["steps", "data", []], default=[])
    chosen = parser.parse_args()
    for measure in (steps, data):
        if not chosen.what or measure.__name__ in chosen.what:
            with tempfile.TemporaryDirectory() as work:
                measure(Path(work))


if __name__ == "__main__":
    main()
