import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from processes import REPOSITORY, train
from sweeps import all_are_refused, end, start

from launcher.sweep.comparison import Entry
from launcher.sweep.search import Search, SearchOptions
from launcher.sweep.space import space_of
from launcher.sweep.study import Study
from launcher.sweep.trial_state import State

LR = "optimizer.lr=tag(log,interval(0.001,1))"
SMALL = ["model.hidden=[8]", "threads=1", "wandb.mode=disabled", "hydra/sweeper=optuna", "hydra.launcher.devices=1"]
ASHA = ["hydra.sweeper.pruner=asha", "hydra.sweeper.reduction_factor=2", "epochs=4", "hydra.sweep.dir=grid"]


def studied(place):
    """Number, state, values and parameters of each trial, as Optuna reads them."""
    storage = JournalStorage(JournalFileBackend(str(place / "study.log")))
    trials = optuna.load_study(study_name="search", storage=storage).trials
    return [(trial.number, trial.state.name, trial.values, trial.params) for trial in trials]


def kept(place):
    """What there is of each trial, to the bit: its record and its checkpoints."""
    files = [*place.glob("*/metrics.jsonl"), *place.glob("*/checkpoints/step_*/model.safetensors")]
    return {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def searching(*words, **options):
    """A search of its own, of no sweep."""
    text = yaml.safe_load((REPOSITORY / "conf/hydra/sweeper/optuna.yaml").read_text())
    known = {key: text[key] for key in text if key not in ("_target_", "params")} | options
    space = space_of(OverridesParser.create().parse_overrides(list(words)))
    return Search(SimpleNamespace(pruning=None), space, SearchOptions(**known))


def test_a_trial_of_another_sweep_is_known_by_what_its_values_mean():
    search = searching("optimizer=sgd,adam", "model.hidden=[8,8],[4]", "optimizer.lr=interval(0.1,1)", "c=null,x")
    config = {"model.hidden": [8, 8], "optimizer.lr": 0.5, "c": "x"}
    entry = Entry("a", Path("a"), State.FINISHED, ["optimizer=adam"], config, {}, "", [], [])
    found = {"optimizer": "adam", "model.hidden": "[8,8]", "optimizer.lr": 0.5, "c": "x"}
    assert search._values_in(entry) == found
    assert search._values_in(replace(entry, config=config | {"model.hidden": [8]})) is None
    assert search._values_in(replace(entry, overrides=[])) is None


def test_a_search_whose_time_is_over_says_what_it_has_not_begun(tmp_path, capsys):
    search = searching(LR, n_trials=7)
    search.study = Study(tmp_path, search.space, "random", {}, 0, ["min"], {})
    search.close()
    assert capsys.readouterr().out == ""
    search._deadline = 0.0
    search.close()
    assert "7 trials were not begun" in capsys.readouterr().out


def test_a_search_prunes_promotes_and_goes_on(place):
    """Asked for more trials it goes on; a finished trial, that was paused, is what it is alone."""
    words = [*SMALL, *ASHA, LR, "hydra.sweeper.seed=1"]
    printed = ""
    for count in (2, 4):
        status, out, err = end(start([*words, f"hydra.sweeper.n_trials={count}"], place))
        assert status == 0, (out, err)
        printed += out
    assert " promoted on cpu 0: " in printed and " pruned in " in printed, printed
    found = studied(place / "grid")
    assert [number for number, *_ in found] == list(range(4))
    assert {state for _, state, *_ in found} == {"COMPLETE", "PRUNED"}
    best = next(trial for trial in sorted(found, key=lambda t: t[2] or [9e9]) if trial[1] == "COMPLETE")
    lr = f"optimizer.lr={best[3]['optimizer.lr']!r}"
    (run,) = place.glob(f"grid/*{lr}*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["epoch"] == 4 and summary["best"]["eval/loss"] == best[2][0]
    paused = [path for path in place.glob("grid/*/stopped.json") if json.loads(path.read_text())["reason"] == "pruned"]
    assert paused
    status, _, err = end(start([*words, "log_every=7", "seed=3"], place))
    assert status == 2 and "another config" in err and "seed: 0 -> 3" in err and "log_every" not in err, err
    alone = place / "alone"
    command = [word for word in words if "hydra" not in word and word != LR]
    train([*command, lr, f"hydra.run.dir={alone}"], place).ok()
    assert (run / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


WRONG = {
    "nothing to search": (["seed=0"], ["nothing to search", "interval"]),
    "a wrong end": (["optimizer.lr=interval(-1,1)"], ["optimizer.lr=-1.0", "greater than 0"]),
    "a wrong choice": ([LR, "optimizer=sgd,adamm"], ["optimizer=adamm", "Did you mean adam"]),
    "an unknown sampler": ([LR, "hydra.sweeper.sampler=tpr"], ["hydra.sweeper.sampler=tpr", "tpe"]),
    "an unknown pruner": ([LR, "hydra.sweeper.pruner=hyper"], ["hydra.sweeper.pruner=hyper", "hyperband"]),
    "no trials": ([LR, "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0", "whole number"]),
    "an argument": ([LR, "hydra.sweeper.sampler_options={multi:1}"], ["sampler=tpe", "multi"]),
    "never evaluated": ([LR, "hydra.sweeper.pruner=asha", "eval_every=null"], ["eval_every=null", "asha"]),
    "a direction": ([LR, "hydra.sweeper.metrics=[eval/wheels]"], ["eval/wheels", "metric_mode=max"]),
    "two and a pruner": (
        [LR, "hydra.sweeper.metrics=[eval/loss,eval/accuracy]", "hydra.sweeper.pruner=median"],
        ["pruner=median", "one metric"],
    ),
    "not while it runs": (
        [LR, "hydra.sweeper.metrics=[test/loss]", "hydra.sweeper.pruner=asha"],
        ["test/loss", "while a trial runs"],
    ),
    "no sweep": ([LR, "hydra.sweeper.from_sweeps=[nowhere]"], ["nowhere", "no sweep"]),
    "its own seed": ([LR, "hydra.sweeper.sampler_options={seed:3}"], ["sampler_options", "hydra.sweeper.seed"]),
    "a metric twice": ([LR, "hydra.sweeper.metrics=[eval/loss,eval/loss]"], ["eval/loss,eval/loss", "twice"]),
    "one directory": ([LR, "hydra.sweep.subdir=a"], ["hydra.sweep.subdir", "${hydra.job.num}"]),
    "a tag": (["optimizer.lr=tag(lg,interval(0,1))"], ["tag lg", "log and int"]),
}


@pytest.mark.soak
def test_wrong_input_is_refused_before_anything_starts(place):
    running = {
        what: start([*SMALL, *words, f"hydra.sweep.dir={n}"], place)
        for n, (what, (words, _)) in enumerate(WRONG.items())
    }
    all_are_refused(running, WRONG)
    assert not list(place.glob("*/*/metrics.jsonl"))


def shoot(process, rng):
    """Kill the executor, all of its processes, or one of a trial, with SIGKILL; returns what."""
    there = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    what = rng.choice(("executor", "all", "trial")) if there else "executor"
    victims = {"executor": [process.pid], "all": [process.pid, *there], "trial": there[-1:]}[what]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return what


@pytest.mark.soak
@pytest.mark.parametrize(("pruner", "seed"), [("asha", 1), ("median", 3)])
def test_a_search_that_is_killed_again_and_again_is_the_one_that_was_not(place, pruner, seed):
    """Same trials in the same order, same bits, none lost or run twice."""
    words = [*SMALL, *ASHA, LR, f"hydra.sweeper.pruner={pruner}", "hydra.sweeper.n_trials=7"]
    undisturbed = start([*words, "hydra.sweep.dir=whole"], place)
    rng, kills = random.Random(seed), 0
    status, out, err = end(undisturbed)
    assert status == 0, (out, err)
    process, out, err = None, "", ""
    while process is None or process.returncode != 0:
        process = process or start(words, place)
        try:
            out, err = process.communicate(timeout=rng.uniform(2, 7) if kills < 5 else 150)
            assert process.returncode == 0, (kills, out, err)
        except subprocess.TimeoutExpired:
            kills += 1
            if shoot(process, rng) != "trial":
                process.communicate()
                process = None
            time.sleep(0.2)
    assert kills >= 2, (out, err)
    assert studied(place / "grid") == studied(place / "whole")
    assert kept(place / "grid") == kept(place / "whole")


@pytest.mark.soak
def test_equal_choices_are_run_once(place):
    words = [*SMALL, "optimizer=sgd,adam", "epochs=1", "hydra.sweeper.n_trials=6", "hydra.sweep.dir=grid"]
    status, out, err = end(start(words, place))
    assert status == 0, (out, err)
    assert len(list(place.glob("grid/*/summary.json"))) == 2
    found = studied(place / "grid")
    values = {params["optimizer"]: set() for *_, params in found}
    for _, state, value, params in found:
        assert state == "COMPLETE"
        values[params["optimizer"]].add(tuple(value))
    assert [len(each) for each in values.values()] == [1, 1]


@pytest.mark.soak
def test_several_objectives_on_several_devices_of_two_ranks(place):
    """Two trials of two processes at once, each judged by two metrics; then its results teach another search."""
    words = [
        *SMALL[:-1], LR, "epochs=2", "hydra.sweeper.n_trials=6", "hydra.launcher.devices=4",
        "hydra.launcher.devices_per_run=2",
    ]  # fmt: skip
    both = [*words, "hydra.sweeper.metrics=[eval/loss,eval/accuracy]", "hydra.sweep.dir=grid"]
    status, out, err = end(start(both, place))
    assert status == 0, (out, err)
    found = studied(place / "grid")
    assert [state for _, state, *_ in found] == ["COMPLETE"] * 6 and all(len(values) == 2 for _, _, values, _ in found)
    for file in place.glob("grid/*/summary.json"):
        assert json.loads(file.read_text())["world_size"] == 2
    more = [*words, "hydra.sweeper.from_sweeps=[grid]", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=more"]
    status, out, err = end(start(more, place))
    assert status == 0, (out, err)
    assert "6 of 6 trials" in out and len(studied(place / "more")) == 8
    shutil.rmtree(place / "grid")  # what it taught is in the study
    status, out, err = end(start([*more, "hydra.sweeper.n_trials=3"], place))
    assert status == 0, (out, err)
    assert len(list(place.glob("more/*/summary.json"))) == 3


@pytest.mark.soak
def test_a_trial_that_fails_is_told_and_the_search_goes_on(place):
    words = [*SMALL[1:], "model._target_=own.Net", "+model.mode=ok,raise", "seed=range(0,4)", "epochs=1"]
    status, out, err = end(start([*words, "hydra.sweeper.n_trials=6", "hydra.sweep.dir=grid"], place))
    assert status == 1 and "a wheel came off" in err, (out, err)
    found = studied(place / "grid")
    assert len(found) == 6 and {state for _, state, *_ in found} == {"COMPLETE", "FAIL"}
    for _, state, _, params in found:
        assert (state == "FAIL") == (params["+model.mode"] == "raise")


@pytest.mark.soak
def test_settings_that_failed_are_not_run_again(place):
    words = [*SMALL[1:], "model._target_=own.Net", "+model.mode=ok,raise", "epochs=1", "hydra.sweep.dir=grid"]
    status, out, err = end(start([*words, "hydra.sweeper.n_trials=8"], place))
    assert status == 1 and "Traceback" not in err, (out, err)
    assert out.count(" started on cpu ") == 2, out
    for _, state, _, params in (found := studied(place / "grid")):
        assert (state == "FAIL") == (params["+model.mode"] == "raise")
    assert len(found) == 8


@pytest.mark.soak
def test_a_directory_has_one_search(place):
    """Begun with other settings, or as another kind of sweep, it is refused; by the number of its trials it goes on."""
    words = [
        *SMALL, LR, "hydra.sweep.dir=grid", "hydra.sweep.subdir=${hydra.job.num}",
        "hydra.sweeper.metrics=[eval/accuracy]",
    ]  # fmt: skip
    status, out, err = end(start([*words, "epochs=1", "hydra.sweeper.n_trials=1"], place))
    assert status == 0, (out, err)
    grid = ["model.hidden=[8]", "threads=1", "wandb.mode=disabled", "epochs=1", "hydra.launcher.devices=1"]
    refused = {
        "epochs: 1 -> 2": [*words, "epochs=2", "hydra.sweeper.n_trials=2"],
        "holds a search": [*grid, "optimizer.lr=0.1", "hydra.sweep.dir=grid"],
    }
    for said, other in refused.items():
        status, out, err = end(start(other, place))
        assert status == 2 and said in err, (out, err)
    status, out, err = end(start([*words, "epochs=1", "hydra.sweeper.n_trials=2"], place))
    assert status == 0 and (place / "grid/1/summary.json").exists() and "[1/1] finished" in out, (out, err)
    assert "best       eval/accuracy" in out, out
    (place / "grid/study.log").unlink()
    status, out, err = end(start([*words, "epochs=1", "hydra.sweeper.n_trials=2"], place))
    assert status == 2 and "from_sweeps" in err, (out, err)
