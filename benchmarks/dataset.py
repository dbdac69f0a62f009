"""Epochs over a person's own Dataset beside those of a tuned DataLoader loop: python benchmarks/dataset.py.

Both loops stand in one process and take turns, an epoch each with its evaluation, so that they meet the same
neighbours. The loop by hand does what torch's documentation advises: workers that stay, a fused optimizer, gradients
set to none. Samples of 5 us are a row of a tensor; the others hash bytes for as long as it takes. Prints, for each cost
of a sample and number of workers, the median ratio of neighbouring epochs and its 95 % interval.
"""

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT), str(ROOT / "benchmarks/peers")]

import workload  # noqa: E402

from benchmarks.table import bootstrap_interval  # noqa: E402
from launcher.batching import stream  # noqa: E402
from launcher.batching.plan import plan_batch  # noqa: E402
from launcher.data import Data, DatasetSplit  # noqa: E402
from launcher.distributed.process_group import start  # noqa: E402
from launcher.distributed.ranks import find_ranks  # noqa: E402
from launcher.losses.loss import build_loss  # noqa: E402
from launcher.optimizers.optimizer import build_optimizer  # noqa: E402
from launcher.schedulers.schedule import build_schedule  # noqa: E402
from launcher.tasks.outputs import Outputs  # noqa: E402
from launcher.tasks.supervised import Supervised  # noqa: E402
from launcher.training.evaluation import EvaluationSettings, Evaluator  # noqa: E402
from launcher.training.trainer import Learner, Trainer, TrainerSettings  # noqa: E402

BATCH, EPOCHS = 64, 10_000
BLOCK = bytes(1 << 12)


class Samples(Dataset):
    """Rows of a tensor, each read at a cost.

    Args:
        count: How many.
        hashes: Blocks that are hashed for each of them.
    """

    def __init__(self, count: int, hashes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(count, 784, generator=generator)
        self.targets = torch.randint(10, (count,), generator=generator).tolist()
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        for _ in range(self.hashes):
            hashlib.sha256(BLOCK).digest()
        return self.inputs[index], self.targets[index]


def hashes_for(seconds: float) -> int:
    """How many blocks take that long."""
    begun = time.perf_counter()
    for _ in range(2000):
        hashlib.sha256(BLOCK).digest()
    return round(seconds / ((time.perf_counter() - begun) / 2000))


def by_hand(train: Samples, held_out: Samples, workers: int) -> Callable[[], None]:
    """An epoch and an evaluation of a plain loop."""
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(train, BATCH, shuffle=True, **settings)
    evaluated = DataLoader(held_out, 4 * BATCH, **settings)
    torch.manual_seed(0)
    model = workload.build_model("mlp").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))
    criterion = torch.nn.CrossEntropyLoss()

    def epoch() -> None:
        for inputs, targets in loader:
            optimizer.zero_grad(set_to_none=True)
            criterion(model(inputs), targets).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            loss, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for inputs, targets in evaluated:
                outputs = model(inputs)
                loss += criterion(outputs, targets) * len(targets)
                right += (outputs.argmax(1) == targets).sum()
        model.train()
        float(loss), int(right)

    return epoch


def of_launcher(train: Samples, held_out: Samples, workers: int) -> Callable[[], None]:
    """The same of a run as train.py builds it."""
    parts = [DatasetSplit(dataset, torch.tensor(dataset.targets)) for dataset in (train, held_out, held_out)]
    data = Data("made", "classification", (784,), 10, *parts)
    ranks = find_ranks({})
    runtime = {
        "device": "cpu", "mixed_precision": "no", "threads": 1, "timeout": 60, "deterministic": False,
        "strategy": {}, "float32_matmul_precision": "highest",
    }  # fmt: skip
    accelerator = start(ranks, runtime, True)
    plan = plan_batch(len(train), BATCH, 1, None)
    steps = EPOCHS * plan.steps_per_epoch
    torch.manual_seed(0)
    model = workload.build_model("mlp")
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9}
    optimizer = build_optimizer(sgd, model, 1.0, True)
    cosine = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "interval": "step"}
    schedule = build_schedule(cosine, optimizer, steps, plan.steps_per_epoch)
    loss = {"_target_": "torch.nn.CrossEntropyLoss"}
    task = Supervised(build_loss(loss, data), Outputs.of(data, loss))
    trainer = Trainer(Learner(model, task, optimizer, schedule), TrainerSettings(), accelerator, ranks)
    how = EvaluationSettings(plan.evaluation_size(None), workers)
    evaluator = Evaluator(task, accelerator, ranks, how)
    batches = stream.of_rank(data.train, plan, 0, ranks, accelerator.device, workers).batches(0, steps)

    def epoch() -> None:
        for _ in range(plan.steps_per_epoch):
            trainer.step(next(batches))
        trainer.read_metrics()
        evaluator.evaluate(model, data.validation)

    return epoch


def seconds(epoch: Callable[[], None]) -> float:
    begun = time.perf_counter()
    epoch()
    return time.perf_counter() - begun


def main() -> None:
    """Let the two take turns, and each begin as often as the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=float, nargs="*", default=[5, 50, 5000], help="of a sample, in us")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2, 4])
    parser.add_argument("--epochs", type=int, default=20, help="pairs of epochs (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for cost in options.costs:
        hashes = hashes_for((cost - 5) / 1e6)
        count = 64 * max(4, min(200, round(1e6 / cost / 64)))
        train, held_out = Samples(count, hashes), Samples(max(count // 10, 32), hashes)
        begun = time.perf_counter()
        for i in range(len(held_out)):
            held_out[i]
        took = (time.perf_counter() - begun) / len(held_out) * 1e6
        for workers in options.workers:
            ours, theirs = of_launcher(train, held_out, workers), by_hand(train, held_out, workers)
            found: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
            for number in range(-1, options.epochs):  # the first one starts the workers
                for one in (ours, theirs) if number % 2 else (theirs, ours):
                    found[one].append(seconds(one))
            ratios = [one / other for one, other in zip(found[theirs][1:], found[ours][1:], strict=True)]
            low, high = bootstrap_interval(ratios)
            print(
                f"{took:6.0f} us a sample, {workers} workers, {count} samples: by hand "
                f"{statistics.median(found[theirs][1:]):.3f} s, launcher {statistics.median(found[ours][1:]):.3f} s; "
                f"launcher over by hand {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
