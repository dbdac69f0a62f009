"""What losing nothing costs: python benchmarks/resilience.py [saving] [resume] [exact] [--repeats 5].

- saving: seconds that the training thread spends in saving, a checkpoint every 50 steps of the fashion_mnist recipe
- resume: from the command to the first step's end, at step 100 and, with a record of 50,000 rows, at step 1,000,000
- exact: steps per second with exact_across_devices=true over those without, on 1 and 2 processes
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


def run(place, *words, processes=1):
    """Run the launcher in a directory; its summary."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), TRAIN, *words, "wandb.mode=disabled",
         "hydra.run.dir=run"],
        cwd=place, env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads((place / "run/summary.json").read_text())


def saving(work, repeats):
    """Share of the loop that the training thread spends in saving."""
    shares = []
    for repeat in range(repeats):
        place = work / f"saving{repeat}"
        place.mkdir()
        found = run(place, "experiment=fashion_mnist", "checkpoint.every=50", "eval_every=null",
                    "checkpoint.best=null", "max_steps=300", "scheduler.warmup=30")  # fmt: skip
        shares.append(found["saving_seconds"] / (found["saving_seconds"] + found["training_seconds"]))
        megabytes = sum(f.stat().st_size for f in (place / "run/checkpoints/step_00000300").iterdir()) / 1e6
        shutil.rmtree(place)
    print(
        f"saving every 50 steps of fashion_mnist ({megabytes:.1f} MB each): {statistics.median(shares):.2%} of the "
        f"loop (median of {repeats}, {min(shares):.2%} to {max(shares):.2%})"
    )


def resume(work, repeats):
    """Seconds from a command that resumes to the end of its first step, early and late; and the seek alone."""
    import torch

    from launcher.batching import stream
    from launcher.batching.plan import plan_batch
    from launcher.data.digits import load
    from launcher.distributed.process_group import find_ranks
    from launcher.training import checkpoint

    settings = [
        "scheduler=constant",
        "epochs=100000",
        "eval_every=null",
        "checkpoint.best=null",
        "checkpoint.every=100",
    ]
    early, late = work / "100", work / "1000000"
    early.mkdir()
    run(early, *settings, "max_steps=100")
    model, state = checkpoint.read_checkpoint(early / "run/checkpoints/step_00000100")
    shutil.copytree(early, late)
    # The same run as it would be a million steps later: its state, and a row of the record every 20 steps.
    state["progress"]["step"] = state["schedule"]["updates"] = 1_000_000
    checkpoint.write_checkpoint(late / "run/checkpoints", 1_000_000, model, state)
    row = json.loads((late / "run/metrics.jsonl").read_text().splitlines()[-1])
    with (late / "run/metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row | {"step": step}) + "\n" for step in range(20, 1_000_001, 20))
    seconds = {early: [], late: []}
    for _ in range(repeats):
        for place in (early, late):
            copy = work / "copy"
            shutil.copytree(place, copy)
            began = time.time()
            run(copy, *settings, f"max_steps={int(place.name) + 1}")
            last = json.loads((copy / "run/timings.jsonl").read_text().splitlines()[-1])
            seconds[place].append(last["time"] - began)
            shutil.rmtree(copy)
    ratio = statistics.median(b / a for a, b in zip(seconds[early], seconds[late], strict=True))
    print(
        f"resume: first step done after {statistics.median(seconds[early]):.2f} s at step 100, and after "
        f"{statistics.median(seconds[late]):.2f} s at step 1,000,000: {ratio:.2f} times (median of {repeats} pairs)"
    )
    part = load(0.2, 0.1, 0, False, 1, None).train
    plan = plan_batch(len(part), 64, 1, None, None)
    for step in (100, 1_000_000):
        took = []
        for _ in range(20):
            began = time.perf_counter()
            next(stream.of_rank(part, plan, 0, find_ranks({}), torch.device("cpu"), 0).batches(step, step + 1))
            took.append(time.perf_counter() - began)
        print(f"the first batch at step {step:9,}: {1000 * statistics.median(took):.2f} ms")


def exact(work, repeats):
    """Steps per second with canonical shards over those without."""
    for name, words in {
        "mlp": ["epochs=60"],
        "cnn": ["data=fashion_mnist", "model=cnn", "max_steps=60", "scheduler.T_max=60"],
    }.items():
        for processes in (1, 2):
            ratios = []
            for repeat in range(repeats):
                rates = []
                for exact in ("false", "true"):
                    place = work / f"{name}{processes}{exact}{repeat}"
                    place.mkdir()
                    rates.append(run(place, *words, "eval_every=null", "checkpoint.best=null", "checkpoint.every=null",
                                     "threads=1", f"exact_across_devices={exact}",
                                     processes=processes)["steps_per_second"])  # fmt: skip
                ratios.append(rates[1] / rates[0])
            print(
                f"exact_across_devices, {name}, {processes} processes: {statistics.median(ratios):.2f} times the steps "
                f"per second (median of {repeats} pairs, {min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["saving", "resume", "exact", []], default=[])
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for measure in (saving, resume, exact):
            if not chosen.what or measure.__name__ in chosen.what:
                measure(Path(work), chosen.repeats)


if __name__ == "__main__":
    main()
