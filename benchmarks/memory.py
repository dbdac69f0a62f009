"""Peak memory of a process under DDP and FSDP: python benchmarks/memory.py [2 4].

A network of 16 layers, 63 million parameters (252 MB), AdamW, gloo on CPUs: the largest resident set of rank 0 in three
updates, less that of the same run with a network of 16 thousand parameters. AdamW under DDP needs 4 times the
parameters: weights, gradients and two moments. Saving, which puts the whole state together on rank 0, is not in it.
glibc keeps freed blocks of up to 32 MB and so hides that what was gathered is given up, but for MALLOC_MMAP_THRESHOLD_.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGE = f"model.hidden={[2048] * 16}".replace(" ", "")


def peak(work, processes, *words):
    """Megabytes of rank 0 in the last row of a run's timings, and seconds per step."""
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
         str(ROOT / "launcher/train.py"), "optimizer=adamw", "scheduler=constant", "max_steps=3", "log_every=1",
         "eval_every=null", "checkpoint.best=null", "checkpoint.every=null", "device=cpu", "threads=1",
         "wandb.mode=disabled", "hydra.run.dir=run", *words],
        cwd=work, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    row = json.loads((work / "run/timings.jsonl").read_text().splitlines()[-1])
    shutil.rmtree(work / "run")
    return row["memory_mb"], 1 / row["steps_per_second"]


def main():
    """Print a line for each number of processes and strategy."""
    with tempfile.TemporaryDirectory() as work:
        for strategy in ("ddp", "fsdp"):
            base, _ = peak(Path(work), 2, f"strategy={strategy}", "model.hidden=[128]")
            for processes in [int(word) for word in sys.argv[1:]] or [2, 4]:
                memory, seconds = peak(Path(work), processes, f"strategy={strategy}", LARGE)
                print(
                    f"{strategy:<4} on {processes} processes: {memory - base:5.0f} MB more than the {base:.0f} MB of a "
                    f"small network, {seconds:.2f} s a step",
                    flush=True,
                )


if __name__ == "__main__":
    main()
