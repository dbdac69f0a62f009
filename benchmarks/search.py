"""Searches beside each other at equal cost: what does TPE with successive halving find that random trials do not?

    python benchmarks/search.py                       # digits, five seeds
    python benchmarks/search.py --data fashion_mnist --model cnn --trials 27 --epochs 9

Cost is counted in epochs that were trained, which no other process on the machine changes. The search that ends trials
early goes first; the others get as many whole trials as its epochs pay for, one at least.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPACE = ["optimizer.lr=tag(log,interval(0.0001,1))", "optimizer.weight_decay=tag(log,interval(0.00001,0.1))"]


def run(words: list[str], place: Path) -> list[dict]:
    """The summaries of a sweep's trials."""
    command = [sys.executable, str(ROOT / "launcher/train.py"), "-m", *words, f"hydra.sweep.dir={place}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(file.read_text()) for file in place.glob("*/summary.json")]


def spread(low: float, high: float, count: int) -> list[float]:
    """So many values in equal steps of their logarithm; of one the middle."""
    steps = [(i + 0.5) / count if count < 3 else i / (count - 1) for i in range(count)]
    return [math.exp(math.log(low) + step * (math.log(high) - math.log(low))) for step in steps]


def searches(options: argparse.Namespace, seed: int, place: Path) -> dict[str, tuple[float, float, float]]:
    """For each search the epochs that it trained, and the validation loss and test accuracy of what it found."""
    common = [f"data={options.data}", f"model={options.model}", f"epochs={options.epochs}", "wandb.mode=disabled"]
    optuna = [*common, *SPACE, "hydra/sweeper=optuna", f"hydra.sweeper.seed={seed}", f"seed={seed}"]
    found = {}

    def note(name: str, words: list[str]) -> float:
        trials = run(words, place / name.replace(" ", "_"))
        ended = [trial for trial in trials if trial["status"] == "finished"]
        best = min(ended, key=lambda trial: trial["best"]["eval/loss"])["best"]
        found[name] = sum(trial["epoch"] for trial in trials), best["eval/loss"], best["test/accuracy"]
        return found[name][0]

    halved = ["hydra.sweeper.pruner=asha", f"hydra.sweeper.n_trials={options.trials}"]
    epochs = note("TPE with ASHA", [*optuna, *halved])
    note("random with ASHA", [*optuna, *halved, "hydra.sweeper.sampler=random"])
    whole = max(1, round(epochs / options.epochs))
    note("TPE", [*optuna, f"hydra.sweeper.n_trials={whole}"])
    note("random", [*optuna, f"hydra.sweeper.n_trials={whole}", "hydra.sweeper.sampler=random"])
    rates = ",".join(f"{rate:.6g}" for rate in spread(1e-4, 1, whole))
    note("grid of learning rates", [*common, f"optimizer.lr={rates}", f"seed={seed}"])
    return found


def main() -> None:
    """Print what each search found, the mean over seeds, as a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--trials", type=int, default=27)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(options.seeds):
            for name, figures in searches(options, seed, Path(directory) / str(seed)).items():
                rows.setdefault(name, []).append(figures)
    print("| search | epochs trained | eval/loss of the best | test/accuracy of the best |\n| --- | --- | --- | --- |")
    for name, figures in rows.items():
        epochs, *pair = (
            (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for values in zip(*figures, strict=True)
        )
        print(f"| {name} | {epochs[0]:.0f} | " + " | ".join(f"{mean:.4f} ± {by:.4f}" for mean, by in pair) + " |")


if __name__ == "__main__":
    main()
