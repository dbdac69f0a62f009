"""Sweeps of real processes: isolated, resumable, never doubled, on devices that nobody else has."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from processes import REPOSITORY
from sweeps import OWN_MODEL, end, of, own_tmp, snapshot, start, summary, trials, wait_for, weights

from launcher.sweep import executor
from launcher.sweep.executor import Executor
from launcher.sweep.leases import Pool
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.trial_processes import TrialProcesses
from launcher.sweep.trial_state import State, TrialState
from launcher.sweep.trials import Trial, state_of


class Acted(TrialProcesses):
    """The processes of a trial that end when a test says so."""

    begun: ClassVar[list[Any]] = []

    def start(self, environment, cores):
        self.environment, self.ended_with = environment, None
        self.begun.append(self)

    def note_ended(self, now):
        return self.ended_with is not None

    statuses = property(lambda self: [self.ended_with] * self.trial.world)
    trains, printed = False, "error: too many devices"

    def send(self, number):
        pass


@pytest.fixture
def acted(tmp_path, monkeypatch, capsys):
    """An executor of one trial, of one or two processes, on two devices; and its processes, last start last."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(executor, "TrialProcesses", Acted)
    monkeypatch.setattr(Acted, "begun", [])
    here, lifecycle = tmp_path / "run", TrialState(State.NEW)
    trial = Trial(0, [], "lr=0.1", here, 1, "gpu", 1, 60.0, "eval/loss", 4, b"", lifecycle, sizes=(1, 2))
    display = ProgressDisplay([trial])
    made = Executor([trial], {"gpu": Pool("gpu", {"0": "a", "1": "b"})}, None, 20.0, display)
    made._start_what_fits()
    return made, Acted.begun


def test_a_trial_that_is_refused_with_more_devices_goes_back_to_the_fewest(acted, capsys):
    made, begun = acted
    assert begun[0].environment["WORLD_SIZE"] == "2" and begun[0].environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    begun[0].ended, begun[0].ended_with = [0, 1], 2
    made._supervise(begun[0], None)
    made._start_what_fits()
    assert "WORLD_SIZE" not in begun[1].environment and begun[1].trial.sizes == (1,)
    begun[1].ended, begun[1].ended_with = [0], 2  # it was not the devices
    made._supervise(begun[1], None)
    assert made.queue == [] and begun[1].trial.state == State.FAILED
    out = capsys.readouterr().out
    assert "goes back to 1 process: too many devices" in out and "FAILED" in out


def test_the_time_of_a_trial_counts_over_its_moves(acted, capsys):
    made, begun = acted
    now = time.monotonic()
    begun[0].started = now - 15
    made._supervise(begun[0], None)
    assert begun[0].asked is None
    begun[0].ask_to_move(now)
    begun[0].ended_with = 0
    begun[0].trial.sizes = (1, 4)  # and two devices are no more
    made._supervise(begun[0], None)
    made._start_what_fits()
    assert "moved to 1 process on gpu 0: lr=0.1" in capsys.readouterr().out
    begun[1].started = now - 6
    made._supervise(begun[1], None)
    assert "max_time_per_run (20 s)" in begun[1].killed


def test_a_trial_that_does_not_stop_to_be_moved_goes_on_and_is_not_moved_again(acted):
    made, begun = acted
    begun[0].ask_to_move(time.monotonic() - 100)
    made._supervise(begun[0], None)
    assert "did not stop" in begun[0].killed
    begun[0].ended, begun[0].ended_with = [0, 1], -9
    made._supervise(begun[0], None)
    made._start_what_fits()
    assert begun[1].environment["WORLD_SIZE"] == "2" and begun[1].trial.sizes == (2,)


@pytest.mark.soak
def test_failures_stay_alone_and_are_retried_while_the_finished_are_left_alone(place):
    """A trial each that works, raises, is killed, hangs, spins, loses its directory; then again, all of them cured."""
    words = ["+model.mode=ok,raise,kill,hang,spin,vanish", "timeout=4", *OWN_MODEL]
    status, out, err = end(start(words, place))
    assert status == 1, (out, err)
    assert err.count("FAILED") == 5 and "mode=ok" not in err and "Traceback" not in err
    assert "failed.json cannot be written: No such file" in out
    good = of(place / "grid", "mode=ok")
    assert summary(good)["status"] == "finished" and not (good / "failed.json").exists()
    hangs = "hangs: it has not moved"
    modes = ("raise", "a wheel came off"), ("kill", "killed by SIGKILL"), ("hang", hangs), ("spin", hangs)
    for mode, said in modes:
        failure = json.loads((of(place / "grid", f"mode={mode}") / "failed.json").read_text())
        assert said in failure["reason"] and said in err
    assert "Traceback" in (of(place / "grid", "mode=raise") / "output.log").read_text()
    page = (place / "grid/grid.html").read_text()
    assert "a wheel came off" in page and "1 of 6 finished, 4 failed" in page

    untouched = snapshot(good)
    status, out, err = end(start(words, place, CURED="1"))
    assert status == 0, (out, err)
    assert snapshot(good) == untouched
    assert "1 finished before, 4 to try again, 1 new" in out
    found = trials(place / "grid")
    assert len(found) == 6 and all(summary(path)["status"] == "finished" for path in found.values())
    assert not list((place / "grid").glob("*/failed.json"))
    assert len({weights(path) for path in found.values()}) == 1  # the mode changes nothing else

    # Nothing left to do: nothing is done, in the time of the checks.
    status, out, _ = end(start(words, place))
    assert status == 0 and "6 finished before" in out and "started" not in out
    # Another base config is refused, whether it is given or stands in the YAML.
    own = place / "conf"
    shutil.copytree(REPOSITORY / "conf", own)
    (own / "train.yaml").write_text(
        (own / "train.yaml").read_text().replace("clip_grad_norm: null", "clip_grad_norm: 1")
    )
    status, _, err = end(start(["--config-path", str(own), *words], place))
    assert status == 2 and "clip_grad_norm: null -> 1" in err and snapshot(good) == untouched


@pytest.mark.parametrize(
    "number", [pytest.param(one, marks=pytest.mark.soak) for one in (signal.SIGINT, signal.SIGTERM)]
)
def test_a_signal_stops_every_trial_with_a_checkpoint_and_the_command_it_prints_goes_on(number, place):
    """Ctrl-C, and what `timeout` or torchrun send: to the whole process group."""
    words = ["seed=0,1,2", "+model.delay=0.1", *OWN_MODEL, "epochs=4"]
    first = start(words, place)
    wait_for(lambda: len(list(place.glob("grid/*/metrics.jsonl"))) == 2, first)
    status, _, err = end(start(words, place))
    assert status == 2 and "a sweep runs in it" in err and str(first.pid) in err
    os.killpg(first.pid, number)
    status, out, err = end(first, 30)
    assert status == 0, err
    stopped = list(place.glob("grid/*/stopped.json"))
    assert len(stopped) == 2 and not list(place.glob("grid/*/failed.json"))
    for file in stopped:
        assert json.loads(file.read_text())["reason"] == "SIGTERM"
        assert list(file.parent.glob("checkpoints/step_*"))
    command = shlex.split(out.partition("To go on:")[2].splitlines()[1])
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=place, capture_output=True, text=True, timeout=120,
        env=os.environ | {"TMPDIR": own_tmp(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 to resume, 1 new" in done.stdout
    assert [summary(path)["status"] for path in trials(place / "grid").values()] == ["finished"] * 3


@pytest.mark.soak
def test_a_trial_that_takes_too_long_fails_with_what_it_has_saved(place):
    words = ["+model.delay=0.01,0.3", "epochs=2", "hydra.launcher.max_time_per_run=6", "checkpoint.every=5"]
    status, _, err = end(start([*OWN_MODEL, *words], place))
    assert status == 1 and "took longer than hydra.launcher.max_time_per_run (6 s)" in err
    slow = of(place / "grid", "delay=0.3")
    assert not (of(place / "grid", "delay=0.01") / "failed.json").exists() and list(slow.glob("checkpoints/step_*"))
    status, out, err = end(start([*OWN_MODEL, *words[:2], "hydra.launcher.max_time_per_run=90", words[3]], place))
    assert status == 0 and "resume     from step_" in (slow / "train.log").read_text(), (out, err)
    assert summary(slow)["status"] == "finished"


@pytest.mark.soak
def test_a_killed_executor_loses_nothing_and_doubles_nothing(place):
    words = ["seed=0,1,2,3,4,5", "+model.delay=0.02", *OWN_MODEL, "epochs=2", "log_every=1"]
    notes = place / "notes"
    first = start(words, place, NOTES=str(notes))
    wait_for(lambda: len(list(place.glob("grid/*/summary.json"))) >= 2, first)
    wait_for(lambda: len(list(place.glob("grid/*/metrics.jsonl"))) >= 4, first)
    first.kill()
    first.communicate()
    before = {path: snapshot(path) for path in trials(place / "grid").values() if state_of(path) == "finished"}
    assert 2 <= len(before) < 6
    status, out, err = end(start(words, place, NOTES=str(notes)))  # at once: the orphans are still saving
    assert status == 0, (out, err)
    for path, files in before.items():
        kept = snapshot(path)
        assert {name: kept[name] for name in files if not name.endswith(".lock")}.items() <= files.items(), path
        new = {Path(name).name for name in kept.keys() - files.keys()}
        assert new <= {"curves.png", "report.html"} and (path / "report.html").exists(), (
            path
        )  # for which it had no time
    calm = place / "calm"
    calm.mkdir()
    shutil.copy(place / "own.py", calm)
    status, _, err = end(start(words, calm))
    assert status == 0, err
    assert trials(calm / "grid").keys() == trials(place / "grid").keys() and len(trials(calm / "grid")) == 6
    for name, path in trials(place / "grid").items():
        other = calm / "grid" / name
        assert weights(path) == weights(other), name
        assert (path / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text(), name
        assert not list(path.glob("*/*.new"))


@pytest.mark.soak
def test_rank_0_may_take_its_time_for_pictures_and_uploads(place):
    words = ["+model.mode=late", *OWN_MODEL, "hydra.launcher.devices_per_run=2", "device=cpu"]
    status, out, err = end(start(words, place))
    assert status == 0 and "finished in" in out and not list(place.glob("grid/*/failed.json")), (out, err)


@pytest.mark.soak
def test_a_rank_that_fails_ends_its_trial_alone_and_soon(place):
    """Two ranks a trial; rank 1 of the middle ones raises, is killed, hangs."""
    words = ["+model.mode=first,raise,kill,hang,last", "timeout=8", "hydra.launcher.devices_per_run=2", *OWN_MODEL]
    began = time.monotonic()
    status, out, err = end(start(words, place), 200)
    assert status == 1, (out, err)
    assert time.monotonic() - began < 120
    for mode in ("first", "last"):
        assert summary(of(place / "grid", f"mode={mode}"))["status"] == "finished"
    failures = {
        m: json.loads((of(place / "grid", f"mode={m}") / "failed.json").read_text()) for m in ("raise", "kill", "hang")
    }
    assert "a wheel came off" in failures["raise"]["reason"]
    assert "rank 1" in failures["kill"]["reason"]
    assert failures["hang"]["seconds"] < 60
