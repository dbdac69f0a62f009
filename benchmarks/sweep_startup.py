"""What a sweep costs beside its training: python benchmarks/sweep_startup.py [--trials 16] [--sweep-only].

Side by side: a sweep of trials that train for a second, and the same commands through `accelerate launch`, one after
the other. `--trials 200 --sweep-only --epochs 1` shows whether time and memory per trial stay flat.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "launcher/train.py")


def environment(place):
    return os.environ | {"TMPDIR": str(place), "ACCELERATE_USE_CPU": "1", "PYTHONUNBUFFERED": "1"}


def run_sweep(place, trials, settings):
    """Seconds in all; and for each trial start-up and end in seconds, and the executor's memory in MB as it ended."""
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, TRAIN, "-m", f"seed=range({trials})", *settings, f"hydra.launcher.max_points={trials}",
         "hydra.sweep.dir=grid"],
        cwd=place, env=environment(place), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    started, ended, memory, checked = {}, {}, [], None
    for line in process.stdout:
        words = line.split()
        if words[:1] == ["trial"] and words[2] == "started":
            checked = checked or time.time()
            started[words[1]] = time.time()
        elif words[:1] == ["trial"] and "finished" in words:
            ended[words[1]] = time.time()
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    seconds = time.time() - began
    assert process.wait() == 0
    names = json.loads((place / "grid/grid.json").read_text())["points"]
    rows = []
    for number, name in enumerate(names):
        trial, key = place / "grid" / name, str(number)
        up = (trial / ".hydra/config.yaml").stat().st_mtime - started[key]
        down = ended[key] - (trial / "summary.json").stat().st_mtime
        rows.append((up, down, ended[key] - started[key]))
    return seconds, checked - began, rows, memory


def run_alone(place, trials, settings):
    """Seconds for one call of `accelerate launch` after the other."""
    accelerate = shutil.which("accelerate", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    began = time.time()
    for seed in range(trials):
        words = [accelerate, "launch", TRAIN, f"seed={seed}", *settings, "threads=1", f"hydra.run.dir=alone/{seed}"]
        subprocess.run(words, cwd=place, env=environment(place), check=True, capture_output=True)
        print(f"  accelerate launch {seed + 1}: {time.time() - began:.1f} s so far", flush=True)
    return time.time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=80, help="of the digits; 80 take about a second")
    parser.add_argument("--sweep-only", action="store_true")
    arguments = parser.parse_args()
    settings = [f"epochs={arguments.epochs}", "model.hidden=[8]", "eval_every=null", "checkpoint.best=null",
                "checkpoint.every=null", "wandb.mode=disabled"]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        seconds, before, rows, memory = run_sweep(place, arguments.trials, settings)
        training = [
            json.loads((path / "summary.json").read_text())["training_seconds"] for path in place.glob("grid/seed=*")
        ] or [json.loads(path.read_text())["training_seconds"] for path in place.glob("grid/*/summary.json")]
        ups, downs, walls = zip(*rows, strict=True)
        quarter = max(1, len(rows) // 4)
        print(f"sweep of {len(rows)} trials           {seconds:8.1f} s, {os.cpu_count()} cores")
        print(
            f"  before the first trial     {before:8.1f} s (composing, {before / len(rows):.2f} s a trial, and torch)"
        )
        print(f"  training, median           {statistics.median(training):8.2f} s")
        print(
            f"  from start to run directory{statistics.median(ups):8.2f} s median, {max(ups[2:] or ups):.2f} s at most"
        )
        print(f"  from summary to its end    {statistics.median(downs):8.2f} s median")
        early, late = statistics.median(walls[:quarter]), statistics.median(walls[-quarter:])
        print(f"  a trial, first quarter     {early:8.2f} s, last {late:.2f} s")
        print(f"  memory of the executor     {memory[0]:8.0f} MB at the first end, {memory[-1]:.0f} MB at the last")
        if not arguments.sweep_only:
            alone = run_alone(place, arguments.trials, settings)
            print(f"accelerate launch, {len(rows)} times   {alone:8.1f} s")
            print(f"the sweep is                 {alone / seconds:8.1f} times as fast")


if __name__ == "__main__":
    main()
