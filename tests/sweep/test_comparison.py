import math

import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.comparison import read_sweep


def test_trials_come_from_the_best_to_the_worst(made):
    path, values = made
    found = read_sweep(path, None, None)
    assert [entry.value for entry in found.measured] == sorted(values.values())
    assert found.varied == ["optimizer.lr", "seed"] and (found.metric, found.mode) == ("eval/loss", "min")
    assert found.entries[-1].name == "bad" and found.entries[-1].reason == "<script>no</script>"
    higher = read_sweep(path, "eval/accuracy", None)
    assert higher.mode == "max" and higher.measured[0].value == 0.5


def test_seeds_and_effects_are_those_of_its_trials(made):
    path, values = made
    found = read_sweep(path, None, None)
    first = found.seeds[0]
    assert first.label == "optimizer.lr=0.1" and sorted(first.values) == sorted(values["0.1", s] for s in (0, 1, 2))
    low, high = found.effects["optimizer.lr"]
    assert (low.label, high.label) == ("0.01", "0.1")
    assert low.mean == pytest.approx(0.9) and high.mean == pytest.approx(0.6)


def test_a_diverged_trial_comes_last_of_those_measured(made):
    path, _ = made
    (path / "p0/summary.json").write_text('{"status": "finished", "final": {"eval/loss": NaN}, "best": {}}')
    found = read_sweep(path, None, None)
    assert math.isnan(found.measured[-1].value) and found.measured[0].value == pytest.approx(0.6)


def test_what_is_no_sweep_or_no_metric_is_said(made):
    path, _ = made
    with pytest.raises(ConfigError, match=r"metric=eval/acuracy: no trial has it\. There are: eval/accuracy"):
        read_sweep(path, "eval/acuracy", None)
    with pytest.raises(ConfigError, match="no sweep"):
        read_sweep(path / "p0/.hydra", None, None)


def test_the_command_that_repeats_a_trial_starts_as_many_ranks(made):
    path, _ = made
    found = read_sweep(path, None, None)
    best = found.measured[0]
    assert found.repeat(best).startswith("python launcher/train.py optimizer.lr=0.1 seed=0 ")
    assert "hydra.run.dir" not in found.repeat(best)
    best.summary["world_size"] = 2
    assert found.repeat(best).startswith("torchrun --nproc_per_node 2 launcher/train.py optimizer.lr=0.1 ")
    found.started = ["launcher", "train"]
    assert found.repeat(best).startswith("torchrun --nproc_per_node 2 -m launcher train optimizer.lr=0.1 ")
