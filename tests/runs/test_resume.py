"""Nothing is lost: runs that are killed and started again end with the bits of an undisturbed run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from kill_loop import OWN, RUN, STEPS, disturb, newest, place, same_bits
from processes import rows, summary, train
from safetensors.torch import load_file

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run, never disturbed, on 1, 2 and 3 ranks."""
    found = {}
    for world in (1, 2, 3):
        found[world] = place(tmp_path_factory.mktemp(f"undisturbed{world}"))
        train(RUN, found[world], world).ok()
        assert [row["step"] for row in rows(found[world] / "run")][-1] == STEPS
    return found


@pytest.mark.parametrize("world", [1, *(pytest.param(world, marks=pytest.mark.soak) for world in (2, 3))])
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


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.soak), 2, 3])
def test_killed_at_random_moments_it_ends_with_the_same_bits(world, undisturbed, tmp_path):
    assert disturb(world, place(tmp_path), seed=world, kills=2).total() >= 1
    same_bits(undisturbed[world], tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(("world", "kills"), [(1, 8), (2, 6), (3, 6)])
def test_twenty_kills(world, kills, undisturbed, tmp_path):
    seed, hit = int.from_bytes(os.urandom(4), "big"), 0
    print(f"world {world}, seed {seed}")
    for attempt in range(3 * kills):  # a run that is through before it was hit makes room for the next
        hits = disturb(world, place(tmp_path / str(attempt)), seed + attempt, kills - hit)
        print(dict(hits))
        same_bits(undisturbed[world], tmp_path / str(attempt))
        hit += hits.total()
        if hit == kills:
            return
    raise AssertionError(f"only {hit} of {kills} kills hit")


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
    before = {name: (directory / "run" / name).read_bytes() for name in (".hydra/config.yaml", "provenance.json")}
    assert "finished already" in train([*words, "epochs=2", "log_every=7"], directory, name="io1").ok().out()
    shorter = train([*words, "epochs=1", "log_every=7"], directory, name="io1b").wait()
    assert shorter.status == [2] and "this run has done" in shorter.err()
    assert {name: (directory / "run" / name).read_bytes() for name in before} == before
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


# FAULT="7 15": the model sends its process signal 15 in its 7th call of training.
FAULTY = (
    OWN
    + """
import os, time
from launcher.models.mlp import MLP

class Net(MLP):
    calls = 0

    def forward(self, x):
        self.calls += self.training
        call, number = map(int, os.environ.get("FAULT", "-1 0").split())
        if self.training and self.calls == call:
            os.kill(os.getpid(), number)
            time.sleep(0.3)  # the thread that reads signals gets its turn on a busy machine too
        return super().forward(x)
"""
)
RUN_FAULTY = [*RUN, "model._target_=own.Net"]


def test_killed_after_the_evaluation_that_a_stop_had_put_off(tmp_path):
    """Stopped in step 15, which is to be evaluated; resumed, evaluated, killed in step 16: one row for step 15."""
    calm, disturbed = place(tmp_path / "calm", FAULTY), place(tmp_path / "disturbed", FAULTY)
    train(RUN_FAULTY, calm).ok()
    train(RUN_FAULTY, disturbed, environment={"FAULT": f"65 {signal.SIGTERM:d}"}).ok()
    assert rows(disturbed / "run")[-1]["step"] < 15 and newest(disturbed).name == "step_00000015"
    assert train(RUN_FAULTY, disturbed, environment={"FAULT": f"2 {signal.SIGKILL:d}"}).wait().status == [
        -signal.SIGKILL
    ]
    assert rows(disturbed / "run")[-1]["step"] == 15 and newest(disturbed).name == "step_00000015"
    train(RUN_FAULTY, disturbed).ok()
    same_bits(calm, disturbed)


def test_stopped_in_the_last_step_before_its_evaluation(tmp_path):
    """The next start evaluates, finishes, and leaves the checkpoint that an undisturbed run leaves."""
    calm, stopped = place(tmp_path / "calm", FAULTY), place(tmp_path / "stopped", FAULTY)
    train(RUN_FAULTY, calm).ok()
    train(RUN_FAULTY, stopped, environment={"FAULT": f"{12 * 22} {signal.SIGTERM:d}"}).ok()  # 22 micro-batches an epoch
    assert newest(stopped).name == f"step_{STEPS:08d}" and summary(stopped / "run")["status"] == "stopped"
    train(RUN_FAULTY, stopped).ok()
    assert summary(stopped / "run")["status"] == "finished"
    same_bits(calm, stopped)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "no"])
def test_on_a_gpu_a_stopped_run_ends_with_the_same_bits(precision, tmp_path):
    """Dropout, augmentation, accumulation, moving average and, in half precision, the gradient scaler."""
    words = [*(w for w in RUN if not w.startswith("epochs")), "epochs=40", f"mixed_precision={precision}"]
    calm, stopped = place(tmp_path / "calm"), place(tmp_path / "stopped")
    train(words, calm).ok(120)
    run = train(words, stopped)
    while run.processes[0].exitcode is None:
        record = stopped / "run/metrics.jsonl"
        if record.exists() and record.read_bytes().count(b"\n") > 30:
            run.signal(0, signal.SIGTERM)
            break
        time.sleep(0.002)
    run.ok(120)
    assert (stopped / "run/stopped.json").exists()
    train(words, stopped, name="io1").ok(120)
    same_bits(calm, stopped)
