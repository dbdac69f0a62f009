"""Accelerate's trackers hold what the record holds, by their own readers, whatever was stopped or killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from typing import get_args

import pytest
from kill_loop import place
from processes import rows, summary, train
from test_resume import FAULTY, RUN_FAULTY

from launcher.core.errors import ConfigError


def _needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def _by_mlflow(directory):
    """Configs and histories by metric of each run, each as [(step, value)], as MLflow's client reads them."""
    code = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([e.experiment_id for e in client.search_experiments(filter_string="name = 'mine'")])
histories = [
    {key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
    for run in runs
]
print(json.dumps([[run.data.params for run in runs], histories, [run.info.run_name for run in runs]]))
"""
    return _read(code, directory)


def _by_trackio(directory):
    code = """
import json, sys, trackio
from trackio import SQLiteStorage
runs = list(trackio.Api().runs("mine"))
histories = []
for run in runs:
    found = {}
    for row in SQLiteStorage.get_logs("mine", run.name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                found.setdefault(key, []).append((row["step"], value))
    histories.append(found)
print(json.dumps([[run.config for run in runs], histories, [run.name for run in runs]]))
"""
    return _read(code, directory)


def _read(code, directory):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=_environment(directory), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _environment(directory):
    return os.environ | {
        "MLFLOW_TRACKING_URI": f"file://{directory}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(directory / "trackio"),
    }


def _same(directory, found):
    """One run, the config once, every row of the record once and in order."""
    (config,), (histories,), _ = found
    assert float(config["optimizer.lr"]) > 0 and config["model._target_"] == "own.Net"
    expected = rows(directory / "run")
    for name in {name for row in expected for name in row} - {"step"}:
        wanted = [(row["step"], row[name]) for row in expected if name in row]
        assert [tuple(point) for point in histories[name]] == [pytest.approx(point) for point in wanted], name
    timed = [step for step, _ in histories["time/steps_per_second"]]  # the first row of a start has none
    assert len(timed) == len(set(timed)) and set(timed) <= {row["step"] for row in expected}
    return histories


@pytest.mark.parametrize(
    ("name", "read"),
    [
        pytest.param("mlflow", _by_mlflow, marks=_needs("mlflow")),
        pytest.param("trackio", _by_trackio, marks=_needs("trackio")),
    ],
)
def test_a_stopped_killed_and_finished_run_is_one_run(name, read, tmp_path):
    directory = place(tmp_path, FAULTY)
    environment = _environment(directory)
    words = [*RUN_FAULTY, f"trackers=[{name}]", "wandb.project=mine"]
    train(words, directory, environment=environment | {"FAULT": f"65 {signal.SIGTERM:d}"}, name="io0").ok()
    _same(directory, read(directory))
    killed = train(words, directory, environment=environment | {"FAULT": f"70 {signal.SIGKILL:d}"}, name="io1").wait()
    assert killed.status == [-signal.SIGKILL]
    deadline = time.monotonic() + 40  # its process ends by itself, with all that the record has
    while time.monotonic() < deadline:
        try:
            _same(directory, read(directory))
            break
        except AssertionError:
            time.sleep(0.5)
    assert "WARNING" not in train(words, directory, environment=environment, name="io2").ok().out()
    histories = _same(directory, read(directory))
    end = summary(directory / "run")
    tests = {key: value for key, value in end["final"].items() if key.startswith("test/")}
    assert tests
    for key, value in tests.items():
        assert [tuple(point) for point in histories[key]] == [(end["step"], pytest.approx(value))]


VIEW = """
import sys
from pathlib import Path
from launcher.run.trackers.accelerate import AccelerateView
name, last = sys.argv[1], int(sys.argv[2])
view = AccelerateView(Path("run"), name)
for step in range(1, last + 1):
    view.row({"step": step, "epoch": step / 10, "train/loss": 1 / step}, {"step": step, "steps_per_second": 7.0})
end = {"step": 6, "best_step": 3, "best": {"test/accuracy": 0.5}, "final": {"test/accuracy": 0.75}}
view.close(end if last == 6 else {})
"""


@_needs("dvclive")
def test_dvclive_begins_anew_in_the_run_directory(tmp_path):
    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "run/.hydra/config.yaml").write_text("optimizer: {lr: 0.1}\nwandb: {project: null, name: null}\n")
    for last in ("3", "6"):
        words = [sys.executable, "-c", VIEW, "dvclive", last]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    place = tmp_path / "run/dvclive"
    lines = (place / "plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
    assert [tuple(map(float, line.split())) for line in lines] == [(step, 1 / step) for step in range(1, 7)]
    assert "optimizer.lr: 0.1" in (place / "params.yaml").read_text()
    assert (place / "plots/metrics/test/accuracy.tsv").read_text().split()[-2:] == ["6", "0.75"]


def test_a_tracker_whose_package_is_missing_is_one_sentence(monkeypatch):
    from test_composition import compose

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aim" else real(name))
    with pytest.raises(ConfigError, match=r"trackers: aim is not installed: pip install aim\."):
        compose("trackers=[aim]")


def test_every_name_that_is_accepted_is_one_that_accelerate_has():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from launcher.config.schema import Tracker

    assert set(get_args(Tracker)) - {"csv"} == {str(name) for name in LOGGER_TYPE_TO_CLASS}
