import json
import os
import re
import sys

import pytest

from launcher.sweep.failure import FAILED
from launcher.sweep.trial_state import State
from launcher.sweep.trials import directory_name, in_queue, metric_of, state_of


def test_a_name_says_what_the_trial_is():
    name = directory_name(["optimizer=adam", "epochs=3", "wandb.mode=disabled", "threads=2"], frozenset())
    assert name == "epochs=3,optimizer=adam"
    assert directory_name(["threads=2", "seed=1"], frozenset({"threads"})) == "seed=1,threads=2"
    assert directory_name([], frozenset()) == "defaults"


def test_names_are_safe_short_and_different():
    hard = ["a=[8,16]", "a=8,16", "a=../../etc", "a=x/y", "a='x y'", "a=é", "a=" + "x" * 300, "a=" + "x" * 301, ".a=1"]
    names = [directory_name([text], frozenset()) for text in hard]
    assert len(set(names)) == len(hard)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.,=+-]{0,149}", name), name


def test_files_tell_where_a_trial_stands(tmp_path):
    assert state_of(tmp_path) == State.NEW
    (tmp_path / FAILED).touch()
    assert state_of(tmp_path) == State.FAILED  # before it had a config
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").touch()
    assert state_of(tmp_path) == State.FAILED
    (tmp_path / FAILED).unlink()
    assert state_of(tmp_path) == State.INTERRUPTED
    (tmp_path / "stopped.json").touch()
    assert state_of(tmp_path) == State.STOPPED
    (tmp_path / FAILED).touch()
    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    assert state_of(tmp_path) == State.FINISHED


def test_the_metric_of_a_run_is_that_of_its_best_evaluation(tmp_path):
    assert metric_of(tmp_path, "eval/loss") is None
    summary = {"final": {"eval/loss": 2, "lr": 0.1, "word": "x"}, "best": {"eval/loss": 1}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = [metric_of(tmp_path, name) for name in ("eval/loss", "lr", "word", "none", None)]
    assert found == [1.0, 0.1, None, None, None]


def test_a_sweep_that_was_never_submitted_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))  # without SLURM
    assert in_queue(tmp_path) == {}
    (tmp_path / "submissions/1").mkdir(parents=True)
    (tmp_path / "submissions/1/job.json").write_text('{"job": "7", "points": ["a"]}')
    with pytest.raises(RuntimeError, match=r"squeue .*--jobs 7 "):
        in_queue(tmp_path)
