"""Steps of the launcher beside those of a hand-written loop, in one process: python benchmarks/blocks.py [--recipe].

The compute-bound CNN of the other benchmarks. Two processes meet different neighbours on a shared machine; blocks of a
few steps that take turns meet the same. Prints the median ratio of neighbouring blocks and its 95 % interval.
--recipe lets the launcher train in bfloat16 with channels last, beside the same float32.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT), str(ROOT / "benchmarks/peers")]

import workload  # noqa: E402

from benchmarks.contenders import BATCH, FEATURES_OFF, MODELS, RECIPE, SAME_WORK  # noqa: E402
from benchmarks.table import bootstrap_interval  # noqa: E402
from launcher.batching import stream  # noqa: E402
from launcher.build import build  # noqa: E402
from launcher.config import composition  # noqa: E402
from launcher.config.command_line import parse_arguments  # noqa: E402
from launcher.data import Data  # noqa: E402
from launcher.distributed.process_group import start  # noqa: E402
from launcher.distributed.ranks import find_ranks  # noqa: E402
from launcher.training.trainer import Trainer, TrainerSettings  # noqa: E402

STEPS = 100_000


def of_launcher(root: str, recipe: bool) -> tuple[Data, Callable[[], object]]:
    """The data, and a step of a run as train.py builds it."""
    words = [*SAME_WORK, *MODELS["cnn"], *FEATURES_OFF, *(RECIPE if recipe else []), f"data.root={root}", "epochs=1000"]
    with composition.opened(parse_arguments([]), "train") as (hydra, name):
        settings = composition.compose(hydra, name, words).settings
    ranks = find_ranks({})
    runtime = {
        "device": "cpu", "mixed_precision": settings.mixed_precision, "threads": 1, "timeout": 60,
        "deterministic": False, "strategy": {}, "float32_matmul_precision": "highest",
    }  # fmt: skip
    accelerator = start(ranks, runtime, True)
    parts = build(settings, ranks, 1, False, lambda make: make())
    trainer = Trainer(parts.learner, TrainerSettings(channels_last=settings.channels_last), accelerator, ranks)
    batches = stream.of_rank(parts.data.train, parts.plan, 0, ranks, accelerator.device, 0).batches(0, STEPS)
    return parts.data, lambda: trainer.step(next(batches))


def by_hand(data: Data) -> Callable[[], object]:
    """A step of a plain loop over a float tensor, as in peers/sliced_loop.py."""
    inputs, targets = data.train.prepare(data.train.inputs), data.train.targets
    torch.manual_seed(0)
    model = workload.build_model("cnn").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    criterion, at = torch.nn.CrossEntropyLoss(), 0
    order = torch.randperm(len(inputs))

    def step() -> None:
        nonlocal at
        index = order[at : at + BATCH]
        at = (at + BATCH) % (len(inputs) - BATCH)
        optimizer.zero_grad()
        criterion(model(inputs[index]), targets[index]).backward()
        optimizer.step()
        schedule.step()

    return step


def milliseconds(step: Callable[[], object], count: int) -> float:
    """Of one step, over a block."""
    begun = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begun) / count * 1e3


def main() -> None:
    """Let the two take turns, and each begin as often as the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="store_true", help="bfloat16 and channels last")
    parser.add_argument("--blocks", type=int, default=60, help="pairs of blocks (default: 60)")
    parser.add_argument("--steps", type=int, default=15, help="of a block (default: 15)")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="Fashion-MNIST")
    options = parser.parse_args()
    data, ours = of_launcher(options.data, options.recipe)
    theirs = by_hand(data)
    torch.set_num_threads(1)
    found: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for block in range(-1, options.blocks):  # the first one warms up
        for step in (ours, theirs) if block % 2 else (theirs, ours):
            found[step].append(milliseconds(step, options.steps))
    ratios = [one / other for one, other in zip(found[theirs][1:], found[ours][1:], strict=True)]
    low, high = bootstrap_interval(ratios)
    print(
        f"by hand {statistics.median(found[theirs][1:]):.2f} ms, launcher {statistics.median(found[ours][1:]):.2f} ms"
    )
    print(f"launcher over by hand: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), {len(ratios)} pairs")


if __name__ == "__main__":
    main()
