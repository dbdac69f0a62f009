import json
import math
import shutil

import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.comparison import read_sweep, read_sweeps


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
    first = found.groups[0]
    assert first.label == "optimizer.lr=0.1"
    assert dict(first.values) == {str(s): pytest.approx(values["0.1", s]) for s in (0, 1, 2)}
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
    best.started = ["launcher", "train"]
    assert found.repeat(best).startswith("torchrun --nproc_per_node 2 -m launcher train optimizer.lr=0.1 ")


@pytest.mark.parametrize("reason, state", [("pruned", "pruned"), ("SIGTERM", "stopped")])
def test_a_trial_that_ended_early_shows_what_it_has_and_counts_for_nothing(made, reason, state):
    path, _ = made
    (path / "p0/summary.json").write_text('{"status": "stopped"}')
    (path / "p0/stopped.json").write_text(json.dumps({"reason": reason}))
    found = read_sweep(path, None, None)
    (early,) = [entry for entry in found.entries if entry.name == "p0"]
    assert (early.state, early.value) == (state, 0.5)  # the last of its record, less than any other
    assert early in found.entries[5:] and early not in found.measured and found.groups[0].n == 2


def test_several_sweeps_are_one_comparison(made, tmp_path_factory):
    path, _ = made
    other = tmp_path_factory.mktemp("other") / "more"
    shutil.copytree(path, other)
    for number in range(6):  # the same settings with three more seeds
        file = other / f"p{number}/.hydra/overrides.yaml"
        words = json.loads(file.read_text())
        words[1] = f"seed={int(words[1][-1]) + 3}"
        file.write_text(json.dumps(words))
    found = read_sweeps([path, other, path], None, None, path)
    assert found.sweeps == [path, other] and [group.n for group in found.groups] == [6, 6]
    assert len({entry.name for entry in found.entries}) == 14 and found.name == f"{path.name}, more"


def test_what_differs_from_sweep_to_sweep_counts_though_no_override_names_it(made, tmp_path_factory):
    path, _ = made
    other = tmp_path_factory.mktemp("other") / "more"
    shutil.copytree(path, other)
    for file in other.glob("p*/.hydra/config.yaml"):
        config = json.loads(file.read_text())
        config["label_smoothing"] = 0.1
        config["optimizer"]["momentum"] = 0.5
        config["log_every"] = 7  # changes no result
        file.write_text(json.dumps(config))
    found = read_sweeps([path, other], None, None, path)
    assert set(found.groups[0].settings) == {"optimizer.lr", "label_smoothing", "optimizer.momentum"}
    assert [group.n for group in found.groups] == [3, 3, 3, 3]


def test_several_metrics_have_a_front(made):
    path, _ = made
    found = read_sweep(path, "eval/accuracy,eval/loss", None)
    assert found.modes == {"eval/accuracy": "max", "eval/loss": "min"} and found.metric == "eval/accuracy"
    assert [(point.settings["optimizer.lr"], point.on_front) for point in found.front] == [
        ("0.1", True),
        ("0.01", False),
    ]
    found = read_sweep(path, "eval/accuracy,eval/loss", "max,max")
    assert [point.on_front for point in found.front] == [True, True]
    with pytest.raises(ConfigError, match="metric=eval/los: no trial has it"):
        read_sweep(path, "eval/accuracy,eval/los", None)
    with pytest.raises(ConfigError, match="mode=min,max: give min or max for each metric"):
        read_sweep(path, "eval/accuracy", "min,max")


def test_how_wandb_names_a_run_makes_no_other_setting(made):
    path, _ = made
    for number in range(6):
        file = path / f"p{number}/.hydra/overrides.yaml"
        words = json.loads(file.read_text())
        file.write_text(json.dumps([*words, f"wandb.name=run{number}"]))
    assert [group.n for group in read_sweep(path, None, None).groups] == [3, 3]
