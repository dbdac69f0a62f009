import json
import time
from types import SimpleNamespace

import pytest

from launcher.sweep import progress
from launcher.sweep.progress import ProgressDisplay, how_far, last_row
from launcher.sweep.trial_state import State, TrialState
from launcher.sweep.trials import Trial


@pytest.fixture
def trial(tmp_path):
    return Trial(3, [], "lr=0.1", tmp_path, 1, "cpu", 1, 60.0, "eval/loss", 4, b"", TrialState(State.NEW))


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    record = tmp_path / "metrics.jsonl"
    assert last_row(record) == {}
    record.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert last_row(record) == {"step": 2}
    record.write_text('{"step": 1}\n[3]\n')
    assert last_row(record) == {}


def test_how_far_a_trial_is(trial):
    assert how_far(trial, time.monotonic()) == "0 s"
    (trial.path / "metrics.jsonl").write_text(json.dumps({"epoch": 1.23456, "train/loss": 0.123456}) + "\n")
    assert how_far(trial, time.monotonic() - 7) == "epoch 1.23/4  loss 0.1235  7 s"


def test_how_trials_end_is_said_with_a_count(trial, capsys):
    other = SimpleNamespace(state=State.FINISHED)
    display = ProgressDisplay([trial, other])
    trial.lifecycle.start()
    trial.lifecycle.fail("a wheel came off")
    display.ended(trial, 1.26)
    trial.lifecycle.start()
    trial.lifecycle.end(State.FINISHED)
    (trial.path / "summary.json").write_text(json.dumps({"best": {"eval/loss": 0.25}}))
    display.ended(trial, 2.0)
    failed, finished = capsys.readouterr().out.splitlines()
    assert failed.startswith("trial 3    [1/2] FAILED after 1.3 s (a wheel came off; see ") and "output.log" in failed
    assert finished == "trial 3    [2/2] finished in 2.0 s, eval/loss 0.25: lr=0.1"


def test_off_a_terminal_what_runs_is_said_now_and_then(trial, capsys, monkeypatch):
    display = ProgressDisplay([trial])
    trial.lifecycle.start()
    display.update([(trial, time.monotonic())])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "QUIET", 0.0)
    display.update([(trial, time.monotonic())])
    assert capsys.readouterr().out == "0/1 finished, 1 running: lr=0.1 (0 s)\n"
