"""A run that is killed and signalled again and again ends with the bits of one that never was.

    python tests/kill_loop.py --kills 100 --signals 100

For a person to run; test_resume.py runs shorter ones. Real processes, real signals, at random moments: while a run
starts, trains, writes a checkpoint, and comes to its end. Prints its seed, and a row per number of ranks.
"""

import argparse
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import gpus
import torch
from processes import summary, train
from safetensors.torch import load_file

# Dropout, augmentation, accumulation, a moving average, a schedule with warmup: all that has a state.
OWN = """
import torch
from launcher.data import Data, TensorSplit

def shake(raw, uniforms):
    return raw + 0.1 * (uniforms - 0.5)

def load(n=60, classes=3):
    g = torch.Generator().manual_seed(0)
    def part(n):
        y = torch.arange(n) % classes
        return TensorSplit(torch.randn(n, 5, generator=g) + y[:, None], y, augment=shake, draws=5)
    return Data("own", "classification", (5,), classes, part(n), part(30), part(30))
"""
# OWN with a model that has a BatchNorm.
NETS = (
    OWN
    + """
from torch import nn

class Net(nn.Module):
    def __init__(self, in_features, num_outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_features, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x):
        return self.head(self.body(x))
"""
)
RUN = [
    "data._target_=own.load", "model.hidden=[8]", "model.dropout=0.2", "batch.global_size=14", "batch.max_per_device=3",
    "epochs=12", "log_every=4", "eval_every=5", "checkpoint.every=7", "threads=1", "hydra.run.dir=run", "ema_decay=0.9",
    "optimizer=adamw", "optimizer.lr=0.01", "scheduler=cosine", "scheduler.warmup=6", "clip_grad_norm=1.0",
    "loss.label_smoothing=0.1",
]  # fmt: skip
STEPS = 60
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def place(directory, code=OWN):
    """A working directory with the user's own module in it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "own.py").write_text(code)
    return directory


def newest(directory):
    """The newest checkpoint of the run in a working directory."""
    return max((directory / "run/checkpoints").glob("step_*"))


def flat(tree, prefix=""):
    """Every leaf of nested mappings and lists, with where it stands."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}/")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from flat(value, f"{prefix}{i}/")
    else:
        yield prefix, tree


def same_bits(one, other):
    """Weights, optimizer, moving average, schedule, best figures and record, to the last bit."""
    assert newest(one).name == newest(other).name
    assert (one / "run/metrics.jsonl").read_text() == (other / "run/metrics.jsonl").read_text()
    first, second = (load_file(newest(d) / "model.safetensors") for d in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    first, second = (dict(flat(torch.load(newest(d) / "state.pt", weights_only=True))) for d in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert equal, name
    for name in ("final", "best"):
        assert summary(one / "run")[name] == summary(other / "run")[name]


def disturb(world, directory, seed, kills, signals=0):
    """Start a run, kill or signal it at a random moment, start it again, until it is through or the quota is used up.

    A kill takes a random rank, or all of them; the survivors are told to end as torchrun would, or left to find out.

    Returns:
        How many kills and signals hit while the run was starting, training, saving and ending, by (what, when).
    """
    choose = random.Random(seed)
    bag = ["kill"] * kills + ["signal"] * signals
    choose.shuffle(bag)
    hits = Counter()
    for attempt in itertools.count():
        assert attempt < kills + signals + 60, "the run does not come forward"
        stale = _saves(directory / "run")
        run = train(RUN, directory, world, name=f"io{attempt}", pictures=True)
        if not bag:
            run.ok()
            return hits
        what, when = bag[-1], choose.choice(("starting", "training", "saving", "ending"))
        if when == "ending" and _last(directory / "run").exists():
            when = "starting"
        _wait_until(run, directory / "run", when, choose, stale)
        saving = _saves(directory / "run") - stale
        if what == "signal":
            victims = [choose.randrange(world)]
        else:
            victims = list(range(world)) if choose.random() < 0.5 else [choose.randrange(world)]
        number = signal.SIGKILL if what == "kill" else choose.choice(STOPS)
        for rank in victims:
            if run.processes[rank].exitcode is None:
                run.signal(rank, number)
        # Who waits for a peer that never came waits for `timeout` seconds, where no launcher tells him.
        if when == "starting" or (what == "kill" and choose.random() < 0.5):
            time.sleep(1)
            for rank in range(world):
                if run.processes[rank].exitcode is None:
                    run.signal(rank, signal.SIGTERM)
        run.wait(60)
        if run.status == [0] * world and summary(directory / "run")["status"] == "finished":
            return hits  # it was through before it was hit
        assert what == "signal" or -signal.SIGKILL in run.status, "".join(run.err(rank) for rank in range(world))
        bag.pop()
        hits[what, when if when in ("starting", "ending") else "saving" if saving else "training"] += 1


def _saves(directory):
    """Checkpoints that are being written, or were when their process was killed: by inode, as names come again."""
    found = set()
    for path in (directory / "checkpoints").glob(".making-*"):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def _last(directory):
    return directory / f"checkpoints/step_{STEPS:08d}"


def _wait_until(run, directory, when, choose, stale):
    """Wait for a moment: after the start, after a few more rows, while a checkpoint is written, or after the last."""

    def lines():
        record = directory / "metrics.jsonl"
        return record.read_bytes().count(b"\n") if record.exists() else 0

    if when == "starting":
        time.sleep(choose.random() * 1.5)
        return
    before = STEPS if when == "ending" else lines() + choose.randrange(1, 8)
    deadline = time.monotonic() + 30
    while run.processes[0].exitcode is None and time.monotonic() < deadline:
        if when == "ending" and _last(directory).exists():  # then come the test part, the summary, the pictures
            time.sleep(choose.random() * 0.2)
            return
        if when == "saving" and _saves(directory) - stale:
            return
        if when == "training" and lines() >= before:
            time.sleep(choose.random() * 0.05)
            return
        time.sleep(0.0005)


def main():
    """Kill and signal until the quota is used up; exit status 1 where a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all")
    parser.add_argument("--signals", type=int, default=100, help="SIGTERM, SIGINT and SIGUSR1 in all")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    chosen = parser.parse_args()
    gpus.hide()  # more ranks than most machines have GPUs
    print(f"seed {chosen.seed}")
    choose = random.Random(chosen.seed)
    work = Path(tempfile.mkdtemp())
    begun = time.monotonic()
    for i, world in enumerate(chosen.ranks):
        calm = place(work / f"calm{world}")
        train(RUN, calm, world).ok()
        shares = [
            total * (i + 1) // len(chosen.ranks) - total * i // len(chosen.ranks)
            for total in (chosen.kills, chosen.signals)
        ]
        hits, runs = Counter(), 0
        while (left := [s - sum(n for (w, _), n in hits.items() if w == what)
                        for s, what in zip(shares, ("kill", "signal"), strict=True)]) != [0, 0]:  # fmt: skip
            runs += 1
            disturbed = place(work / f"disturbed{world}-{runs}")
            hits += disturb(world, disturbed, choose.randrange(2**32), *left)
            same_bits(calm, disturbed)
            shutil.rmtree(disturbed)
            print(f"  {world} ranks, run {runs}: {hits.total()} hits so far, the same bits", flush=True)
        counts = ", ".join(f"{n} {what}s while {when}" for (what, when), n in sorted(hits.items()))
        print(f"{world} ranks: {runs} runs, {counts}: the same bits each time, no hang", flush=True)
    shutil.rmtree(work)
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
