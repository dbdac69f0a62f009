"""What check=true says beside what the run then takes: python benchmarks/plan.py [ROUNDS] [mlp cnn ...].

Each round runs, for each of five models, three processes one after the other: check=true, the run, and the same run
with a tiny model and batches of 2. The memory of a run is its peak resident set (`peak_memory_mb` of summary.json)
less that of the tiny one: what Python, the libraries and the data take is in both. glibc
keeps freed blocks of up to 32 MB, which count as resident, but for MALLOC_MMAP_THRESHOLD_, which is set here. Medians
over the rounds, and of the errors the range.

    counted   check's figure from fake tensors, before anything is allocated
    tried     check's figure from its own real steps, less the peak of the tiny run
    training  the updates alone: the wait for the first batch, evaluations and saves left out
    command   from the start of the process to its end
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["device=cpu", "threads=1", "wandb.mode=disabled", "epochs=2", "log_every=5", "hydra.run.dir=run"]
IMAGES = ["data=image_folder", "data.root=images", "data.image_size=32", "num_workers=1", "batch.global_size=16"]
# Model: the words that pick it, and those that make it tiny.
MODELS = {
    "mlp": (["model.hidden=[2048,2048]", "optimizer=adam"], ["model.hidden=[2]"]),
    "cnn": ([*IMAGES, "model=cnn", "model.channels=[48,96,192]"], ["model.channels=[2]"]),
    "resnet": ([*IMAGES, "model=resnet", "model.width=32", "ema_decay=0.99"], ["model.width=8", "model.depth=8"]),
    "transformer": (
        ["experiment=text", "data.path=text.txt", "data.cache=cache"],
        ["model.width=8", "model.layers=1", "model.heads=1"],
    ),
    "timm resnet18": ([*IMAGES, "model=timm", "optimizer=adamw"], ["model.name=test_resnet"]),
}
TIME = {"min": 60, "h": 3600, "s": 1}


def make_data(work):
    """192 training images of noise, 32 for each other part, and 100 kB of text."""
    random = np.random.RandomState(0)
    for part, count in (("train", 96), ("validation", 16), ("test", 16)):
        for kind in ("a", "b"):
            (work / "images" / part / kind).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 255, (80, 80, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(work / f"images/{part}/{kind}/{i}.png")
    (work / "text.txt").write_bytes(bytes(random.randint(97, 123, 100_000).astype(np.uint8)))


def start(work, words):
    """Run the launcher to its end; what it printed, and the seconds."""
    shutil.rmtree(work / "run", ignore_errors=True)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "launcher/train.py"), *words], cwd=work, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout, time.monotonic() - begun


def seconds(text):
    """Of a duration as check prints it, such as `2 min 3 s`."""
    return sum(float(number) * TIME[unit] for number, unit in re.findall(r"([\d.e+-]+) (h|min|s)\b", text))


def measure(work, words, tiny):
    """One round: (estimated, measured) of the memory that was counted and that was tried, and of the seconds."""
    said, _ = start(work, [*words, *COMMON, "check=true"])
    _, took = start(work, [*words, *COMMON])
    rows = [json.loads(line) for line in (work / "run/timings.jsonl").read_text().splitlines()]
    steps = [row["step"] - before for row, before in zip(rows, [0, *(row["step"] for row in rows)], strict=False)]
    training = sum(count / row["steps_per_second"] for count, row in zip(steps, rows, strict=True))
    training -= rows[0]["data_wait"]  # which check counts as beginning
    peak = json.loads((work / "run/summary.json").read_text())["peak_memory_mb"]
    start(work, [*words, *COMMON, *tiny, "batch.global_size=2", "max_steps=2"])
    base = json.loads((work / "run/summary.json").read_text())["peak_memory_mb"]

    def number(pattern):
        return float(re.search(pattern, said)[1].replace(",", ""))

    return {
        "counted, MB": (number(r"([\d.,]+) MB at most, activations"), peak - base),
        "tried, MB": (number(r"([\d.,]+) MB at most in the steps") - base, peak - base),
        "training, s": (seconds(re.search(r"end, ([^,]*) of training", said)[1]), training),
        "command, s": (seconds(re.search(r"time +([^:]*):", said)[1]), took),
    }


def main():
    """Print a row for each model and figure."""
    words = sys.argv[1:]
    rounds = int(words.pop(0)) if words and words[0].isdigit() else 3
    chosen = words or list(MODELS)
    found = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as place:
        make_data(Path(place))
        for _ in range(rounds):
            for name in chosen:
                found[name].append(measure(Path(place), *MODELS[name]))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    print("| model | figure | estimated | measured | error |\n| --- | --- | --- | --- | --- |")
    for name, results in found.items():
        for figure in results[0]:
            estimated, measured = (statistics.median(one[figure][i] for one in results) for i in (0, 1))
            errors = sorted(100 * (one[figure][0] / one[figure][1] - 1) for one in results)
            error = f"{statistics.median(errors):+.0f} % ({errors[0]:+.0f} to {errors[-1]:+.0f})"
            print(f"| {name} | {figure} | {estimated:.4g} | {measured:.4g} | {error} |")


if __name__ == "__main__":
    main()
