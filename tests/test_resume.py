"""Nothing is lost: runs that are killed and started again end with the bits of an undisturbed run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import train
from safetensors.torch import load_file
from test_train import rows, summary

# Dropout, augmentation, accumulation, a moving average, a schedule with warmup: all that has a state.
OWN = """
import torch
from launcher.data import Data, TensorPart

def shake(raw, uniforms):
    return raw + 0.1 * (uniforms - 0.5)

def load(n=60, classes=3):
    g = torch.Generator().manual_seed(0)
    def part(n):
        y = torch.arange(n) % classes
        return TensorPart(torch.randn(n, 5, generator=g) + y[:, None], y, augment=shake, draws=5)
    return Data("own", "classification", (5,), classes, part(n), part(30), part(30))
"""
RUN = [
    "data._target_=own.load", "model.hidden=[8]", "model.dropout=0.2", "batch.global_size=14", "batch.max_per_device=3",
    "epochs=12", "log_every=4", "eval_every=5", "checkpoint.every=7", "threads=1", "hydra.run.dir=run", "ema_decay=0.9",
    "optimizer=adamw", "optimizer.lr=0.01", "scheduler=cosine", "scheduler.warmup=6", "clip_grad_norm=1.0",
    "loss.label_smoothing=0.1",
]  # fmt: skip
STEPS = 60


def place(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "own.py").write_text(OWN)
    return directory


def newest(directory):
    return max((directory / "run/checkpoints").glob("step_*"))


def _flat(tree, prefix=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}{key}/")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _flat(value, f"{prefix}{i}/")
    else:
        yield prefix, tree


def same_bits(one, other):
    """Weights, optimizer, moving average, schedule, best figures and record, to the last bit."""
    assert newest(one).name == newest(other).name
    for file in ("run/metrics.jsonl",):
        assert (one / file).read_text() == (other / file).read_text()
    first, second = (load_file(newest(d) / "model.safetensors") for d in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    first, second = (dict(_flat(torch.load(newest(d) / "state.pt", weights_only=True))) for d in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert equal, name
    for name in ("final", "best"):
        assert summary(one / "run")[name] == summary(other / "run")[name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run, never disturbed, on 1, 2 and 3 ranks."""
    found = {}
    for world in (1, 2, 3):
        found[world] = place(tmp_path_factory.mktemp(f"undisturbed{world}"))
        train(RUN, found[world], world).ok()
        assert [row["step"] for row in rows(found[world] / "run")][-1] == STEPS
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_stopped_again_and_again_it_ends_with_the_same_bits(world, undisturbed, tmp_path):
    """SIGTERM at an odd step, in mid-epoch and mid-window; then once more, and once more."""
    directory = place(tmp_path)
    stops = 0
    for attempt in range(8):
        run = train(RUN, directory, world, name=f"io{attempt}")
        target = 9 + 13 * attempt
        while run.processes[0].exitcode is None:
            record = directory / "run/metrics.jsonl"
            done = rows(directory / "run")[-1]["step"] if record.exists() and record.stat().st_size else 0
            if done >= target:
                run.signal(random.Random(attempt).randrange(world), signal.SIGTERM)
                break
            time.sleep(0.002)
        run.ok()
        if not (directory / "run/stopped.json").exists():
            break
        stops += 1
        stopped = json.loads((directory / "run/stopped.json").read_text())
        assert stopped["step"] == int(newest(directory).name[5:])
        assert "hydra.run.dir=run" in stopped["resume"] and stopped["resume"] in run.out()
    assert stops >= 1
    same_bits(undisturbed[world], directory)


def kill_and_restart(world, directory, seed, kills):
    """SIGKILL a random rank, or all, at random moments, until `kills` have hit; then let it finish."""
    choose = random.Random(seed)
    hits = attempts = 0
    while True:
        attempts += 1
        assert attempts < kills + 60, "the run does not come forward"
        run = train(RUN, directory, world, name=f"io{attempts}")
        if hits < kills:
            steps = choose.randrange(1, STEPS)
            pause = choose.random() * 0.05
            deadline = time.monotonic() + 30
            while run.processes[0].exitcode is None and time.monotonic() < deadline:
                record = directory / "run/metrics.jsonl"
                lines = record.read_bytes().count(b"\n") if record.exists() else 0
                if lines >= steps * 26 // STEPS or choose.random() < 0.003:
                    break
                time.sleep(0.005)
            time.sleep(pause)
            victims = range(world) if choose.random() < 0.5 else [choose.randrange(world)]
            for rank in victims:
                if run.processes[rank].exitcode is None:
                    run.signal(rank, signal.SIGKILL)
            time.sleep(1)
            for rank in range(world):  # as torchrun does to the survivors
                if run.processes[rank].exitcode is None:
                    run.signal(rank, signal.SIGTERM)
        run.wait(60)
        if any(status == -signal.SIGKILL for status in run.status):
            hits += 1
        else:
            assert run.status == [0] * world, "".join(run.err(rank) for rank in range(world))
            return hits


@pytest.mark.parametrize("world", [1, 2, 3])
def test_killed_at_random_moments_it_ends_with_the_same_bits(world, undisturbed, tmp_path):
    assert kill_and_restart(world, place(tmp_path), seed=world, kills=2) >= 1
    same_bits(undisturbed[world], tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(("world", "kills"), [(1, 8), (2, 6), (3, 6)])
def test_twenty_kills(world, kills, undisturbed, tmp_path):
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"world {world}, seed {seed}")
    hits = kill_and_restart(world, place(tmp_path), seed, kills)
    print(f"{hits} kills hit")
    same_bits(undisturbed[world], tmp_path)


def test_another_number_of_devices_goes_on_with_the_same_batches(tmp_path):
    """2 -> 1 -> 3 ranks, without dropout: the losses of an undisturbed run, to the accuracy of a sum."""
    words = [*(w for w in RUN if not w.startswith("model.dropout")), "model.dropout=0.0"]
    alone, moved = place(tmp_path / "alone"), place(tmp_path / "moved")
    train(words, alone).ok()
    for attempt, world in enumerate((2, 1, 3)):
        run = train(words, moved, world, name=f"io{attempt}")
        while attempt < 2 and run.processes[0].exitcode is None:
            record = moved / "run/metrics.jsonl"
            if record.exists() and len(record.read_text().splitlines()) > 7 * (attempt + 1):
                run.signal(0, signal.SIGTERM)
                break
            time.sleep(0.002)
        run.ok()
    assert summary(moved / "run")["world_size"] == 3
    for row, expected in zip(rows(moved / "run"), rows(alone / "run"), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_exact_across_devices(tmp_path):
    """With canonical shards the weights are bit-identical on 1, 2 and 4 devices, dropout included."""
    words = [*RUN, "exact_across_devices=true", "canonical_shards=4", "epochs=3"]
    directories = {}
    for world in (1, 2, 4):
        directories[world] = place(tmp_path / str(world))
        train(words, directories[world], world).ok()
    for world in (2, 4):
        first, second = (load_file(newest(directories[w]) / "model.safetensors") for w in (1, world))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (directories[1] / "run/metrics.jsonl").read_text() == (
            directories[world] / "run/metrics.jsonl"
        ).read_text()


def test_a_finished_run_may_be_prolonged_where_the_schedule_allows_it(tmp_path):
    directory = place(tmp_path)
    words = [*(w for w in RUN if not w.startswith(("epochs", "scheduler"))), "scheduler=constant"]
    train([*words, "epochs=2"], directory).ok()
    assert "finished already" in train([*words, "epochs=2"], directory, name="io1").ok().out()
    train([*words, "epochs=4"], directory, name="io2").ok()
    whole = place(tmp_path / "whole")
    train([*words, "epochs=4"], whole).ok()
    # The shorter run measured its end, which the longer one passes by: everything else is the same.
    assert load_file(newest(directory) / "model.safetensors").keys()
    first, second = (load_file(newest(d) / "model.safetensors") for d in (directory, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    refused = train([*RUN, "epochs=20"], place(tmp_path / "cosine"), name="../io3").ok()
    assert refused.status == [0]
    refused = train([*RUN, "epochs=30"], tmp_path / "cosine", name="../io4").wait()
    assert refused.status == [2] and "epochs" in refused.err() and "T_max" in refused.err()
    assert Path(tmp_path / "cosine/run/summary.json").exists()
