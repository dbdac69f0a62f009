"""The pictures of trials, drawn by others: all of those that have ended, and none twice."""

import json
import time

import pytest
from processes import rows, train
from wandb_server import history, inspect, segments

from launcher.core.processes import cores
from launcher.run.pictures import LATER, PICTURES, left_to_others, undrawn
from launcher.run.run_directory import UNSHOWN
from launcher.sweep.showing import Showing


@pytest.fixture
def runs(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c", "running")]
    for path in paths:
        path.mkdir()
        rows = [{"step": step, "epoch": step, "train/loss": 1 / step} for step in range(1, 6)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if path.name != "running":
            (path / "summary.json").write_text(json.dumps({"status": "finished", "step": 5}))
    return paths


def times(path):
    return {name: (path / name).stat().st_mtime_ns for name in PICTURES}


def test_what_has_ended_is_drawn_beside_the_trials_and_the_rest_in_the_end(runs):
    showing = Showing()
    showing.add(runs[0])
    showing.go_on()
    end = time.monotonic() + 60
    while undrawn(runs[0]):
        assert time.monotonic() < end
        time.sleep(0.05)
        showing.go_on()
    (runs[1] / "report.html").write_text("<html>cut sho")  # of a start that was killed
    before = times(runs[0])
    showing.finish(runs, False)
    assert [undrawn(path) for path in runs] == [False, False, False, True]
    assert times(runs[0]) == before and not [*runs[3].glob("*.png"), *runs[3].glob("*.html")]
    assert not showing.waiting


def test_a_run_leaves_its_pictures_to_others_where_it_is_told_to(runs, monkeypatch):
    for name in PICTURES:
        (runs[0] / name).write_text("of an earlier start")
    assert not left_to_others(runs[0]) and (runs[0] / "curves.png").exists()
    monkeypatch.setenv(LATER, "1")
    assert left_to_others(runs[0]) and not any((runs[0] / name).exists() for name in PICTURES)


def test_a_wandb_run_that_had_not_begun_is_recorded_whole(tmp_path):
    """By W&B's own reader; the run that leaves it to others has every row, and shows nothing itself."""
    words = [f"threads={len(cores())}", "epochs=3", "log_every=5", "wandb.mode=offline", "hydra.run.dir=run"]
    train(words, tmp_path, 1, {LATER: "1"}).ok()
    run = tmp_path / "run"
    assert not segments(run) and (run / UNSHOWN).exists() and undrawn(run)
    Showing().finish([run], False)
    assert not undrawn(run) and not (run / UNSHOWN).exists()
    (segment,) = segments(run)
    shown = {}
    for row in history(inspect(segment)):
        shown.setdefault(row.pop("_step"), {}).update(row)
    for row in rows(run):
        step = row.pop("step")
        assert {name: shown[step][name] for name in row} == pytest.approx(row)
    assert shown[step]["curves.format"] == "png"
