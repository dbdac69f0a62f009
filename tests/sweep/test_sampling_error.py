"""The error by the choice of test samples, against closed forms, and how often it lets a difference be found."""

import json

import numpy as np
import pytest
from processes import train

from launcher.run.record import TEST_SAMPLES
from launcher.sweep import sampling_error
from launcher.sweep.inference import paired
from launcher.sweep.sampling_error import SamplingError


def kept(tmp_path, **trials):
    """Run directories whose trials have kept these, by name."""
    for name, arrays in trials.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / TEST_SAMPLES, **arrays)
    return {name: tmp_path / name for name in trials}


@pytest.mark.parametrize("groups", [10_000, 400], ids=["samples", "groups of samples"])
def test_it_is_that_of_a_mean_of_paired_differences(groups, tmp_path, monkeypatch):
    """In closed form: the standard deviation of the differences, each the mean over the seeds, over sqrt(n)."""
    monkeypatch.setattr(sampling_error, "GROUPS", groups)
    draw = np.random.default_rng(1)
    n, weight = 3000, np.ones(3000, np.float32)
    hard = draw.random(n)
    right = {name: draw.random(n) < 0.3 + 0.6 * hard for name in ("a0", "a1", "b0", "b1")}
    lost = {name: draw.exponential(1 + hard).astype(np.float32) for name in right}
    paths = kept(tmp_path, **{k: {"loss": lost[k], "weight": weight, "correct": right[k]} for k in right})
    for metric, found in (("test/accuracy", right), ("test/loss", lost)):
        differences = (found["a0"] + 1.0 * found["a1"] - found["b0"] - 1.0 * found["b1"]) / 2
        exact = differences.std(ddof=1) / np.sqrt(n)
        assert SamplingError(metric, paths).of(["a0", "a1"], ["b0", "b1"]) == pytest.approx(exact, rel=0.08)
    same = SamplingError("test/accuracy", paths)
    assert same.of(["a0"], ["a0"]) == 0.0  # the same draw for both
    assert SamplingError("eval/loss", paths).of(["a0"], ["b0"]) is None


def test_samples_that_weigh_differently_are_drawn_with_their_weights(tmp_path):
    """Of a ratio of sums, by its linear approximation (the delta method)."""
    draw = np.random.default_rng(2)
    weight = draw.integers(1, 20, 2000).astype(np.float32)
    a, b = (draw.gamma(2.0, weight).astype(np.float32) for _ in range(2))
    paths = kept(tmp_path, a={"loss": a, "weight": weight}, b={"loss": b, "weight": weight})
    influence = ((a - b) - (a - b).sum() / weight.sum() * weight) / weight.mean()
    exact = influence.std() / np.sqrt(len(weight))
    assert SamplingError("test/loss", paths).of(["a"], ["b"]) == pytest.approx(exact, rel=0.08)


def test_what_has_no_such_file_or_another_split_is_not_known(tmp_path):
    one, other = {"correct": np.ones(50, bool)}, {"correct": np.ones(60, bool)}
    paths = kept(tmp_path, a=one, b=one, longer=other) | {"none": tmp_path / "none"}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / TEST_SAMPLES).write_bytes(b"not an archive")
    known = SamplingError("test/accuracy", paths | {"broken": tmp_path / "broken"})
    assert known.of(["a"], ["b"]) == 0.0
    for name in ("longer", "none", "broken"):
        assert known.of(["a"], [name]) is None


def test_settings_that_are_equally_good_of_all_samples_differ_by_chance_on_few(monkeypatch):
    """Of settings that get other samples right, though equally many: by the seeds alone a test split decides."""
    monkeypatch.setattr(sampling_error, "DRAWS", 200)
    draw, seeds, n = np.random.default_rng(3), 5, 200
    alone, with_samples = 0, 0
    for _ in range(300):
        chances = draw.choice([0.2, 0.95], size=(2, n))  # of this split: how often each setting gets each sample right
        right = {(s, k): draw.random(n) < chances[s] for s in range(2) for k in range(seeds)}

        class Found(SamplingError):
            def _read(self, path, right=right):
                return right[path] * 1.0, np.ones(n)

        values = [[right[s, k].mean() for k in range(seeds)] for s in range(2)]
        keys = [[(s, k) for k in range(seeds)] for s in range(2)]
        error = Found("test/accuracy", {key: key for key in right}).of(*keys)
        alone += paired(*values).p < 0.05
        with_samples += paired(*values, beside=error).p < 0.05
    assert alone > 0.3 * 300 and with_samples <= 0.05 * 300


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_keeps_what_its_metrics_are_made_of(world, tmp_path):
    words = ["epochs=2", "batch.global_size=100", "wandb.mode=disabled", "threads=1", "hydra.run.dir=run"]
    train(words, tmp_path, world).ok()
    best = json.loads((tmp_path / "run/summary.json").read_text())["best"]
    with np.load(tmp_path / "run" / TEST_SAMPLES) as found:
        assert found["correct"].mean() == pytest.approx(best["test/accuracy"], rel=1e-6)
        assert found["loss"].sum() / found["weight"].sum() == pytest.approx(best["test/loss"], rel=1e-6)
        assert len(found["loss"]) == json.loads((tmp_path / "run/evaluation.json").read_text())["samples"]
