"""TensorBoard and metrics.csv hold what the record holds, each row once, whatever was killed."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from kill_loop import place
from processes import rows, summary, train
from test_resume import FAULTY, RUN_FAULTY

from launcher.core.processes import exists
from launcher.run.trackers.views import Views

pytestmark = pytest.mark.versions

VIEWED = [*RUN_FAULTY, "trackers=[tensorboard,csv]"]


def board(directory):
    """Tag to [(step, value, wall time)], as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory / "tb"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def table(directory):
    with (directory / "metrics.csv").open(newline="") as file:
        return [
            {name: int(text) if name == "step" else float(text) for name, text in row.items() if text != ""}
            for row in csv.DictReader(file)
        ]


def same(directory):
    """Both views hold the rows of the record, and the clock's, and nothing else."""
    expected = [{name: float(value) for name, value in row.items()} for row in rows(directory)]
    for line, row in zip(table(directory), expected, strict=True):
        assert repr(sorted(line.items())) == repr(sorted((row | {"step": int(row["step"])}).items())), "to the last bit"
    timings = [json.loads(line) for line in (directory / "timings.jsonl").read_text().splitlines()]
    found = board(directory)
    clock = {row["step"]: row["time"] for row in timings}
    for tag, points in found.items():
        if tag.startswith(("test/", "best/test/")):  # at the step of the last model, and of the best
            group, at = ("best", "best_step") if tag.startswith("best/") else ("final", "step")
            end = summary(directory)
            assert [step for step, _, _ in points] == [end[at]]
            assert points[0][1] == pytest.approx(end[group][tag.removeprefix("best/")], rel=1e-6)
            continue
        name, source = (tag[5:], timings) if tag.startswith("time/") else (tag, expected)
        wanted = [(row["step"], row[name]) for row in source if name in row]
        assert [step for step, _, _ in points] == [step for step, _ in wanted], tag
        for (step, value, wall), (_, number) in zip(points, wanted, strict=True):
            assert value == pytest.approx(number, rel=1e-6, nan_ok=True) and wall == clock[step]
    assert {name for row in expected for name in row} - {"step"} <= found.keys()
    return found


def test_views_of_a_run_that_was_stopped_and_killed(tmp_path):
    directory = place(tmp_path, FAULTY)
    train(VIEWED, directory, environment={"FAULT": f"65 {signal.SIGTERM:d}"}, name="io0").ok()
    assert (directory / "run/stopped.json").exists()
    same(directory / "run")
    killed = train(VIEWED, directory, environment={"FAULT": f"70 {signal.SIGKILL:d}"}, name="io1").wait()
    assert killed.status == [-signal.SIGKILL]
    deadline = time.monotonic() + 20  # they end by themselves, with all that the record has
    while time.monotonic() < deadline:
        try:
            same(directory / "run")
            break
        except (AssertionError, KeyError, OSError, ValueError):
            time.sleep(0.2)
    else:
        same(directory / "run")
    assert "WARNING" not in train(VIEWED, directory, name="io2").ok().out()
    found = same(directory / "run")
    final = summary(directory / "run")["final"]
    tests = {tag: points for tag, points in found.items() if tag.startswith("test/")}
    assert tests.keys() == {name for name in final if name.startswith("test/")} and tests
    for tag, ((step, value, _),) in tests.items():
        assert step == summary(directory / "run")["step"] and value == pytest.approx(final[tag], rel=1e-6)
    assert not (directory / "run/wandb").exists()


def _record(directory, steps, first=1):
    with (directory / "metrics.jsonl").open("a") as record, (directory / "timings.jsonl").open("a") as clock:
        for step in range(first, first + steps):
            extra = (
                {"eval/loss": "nan" if step == 4 else 1 / step} if step % 2 == 0 else {"late": 0.1} if step > 6 else {}
            )
            record.write(json.dumps({"step": step, "epoch": step / 10, "train/loss": 1 / 3 + step} | extra) + "\n")
            clock.write(json.dumps({"step": step, "time": 1e9 + step, "steps_per_second": 7.5 * step}) + "\n")


def test_what_is_not_finite_and_columns_that_come_late(tmp_path):
    _record(tmp_path, 3)
    views = Views(tmp_path, ["csv", "tensorboard"])
    _record(tmp_path, 6, first=4)
    views.close()
    found = same(tmp_path)
    assert math.isnan(found["eval/loss"][1][1]) and len(found["late"]) == 2
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,epoch,train/loss,eval/loss,late"
    again = Views(tmp_path, ["tensorboard"])  # a run that goes on: made anew
    again.close()
    same(tmp_path)


def test_a_reader_sees_rows_while_the_run_goes_on(tmp_path):
    _record(tmp_path, 2)
    views = Views(tmp_path, ["csv"])
    try:
        for count in (2, 5):
            deadline = time.monotonic() + 20
            while not (tmp_path / "metrics.csv").exists() or len(table(tmp_path)) < count:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            _record(tmp_path, 3, first=3) if count == 2 else None
    finally:
        views.close()


def test_views_that_were_killed_are_a_warning(tmp_path, caplog):
    _record(tmp_path, 2)
    views = Views(tmp_path, ["csv"])
    views._child.kill()
    views.close()
    assert "metrics.jsonl holds every row" in caplog.text


def test_the_views_end_with_a_trainer_whose_pipe_is_still_held(tmp_path):
    _record(tmp_path, 4)
    code = (
        "import os, sys, time; from pathlib import Path; from launcher.run.trackers.views import Views\n"
        "views = Views(Path(sys.argv[1]), ['csv'])\n"
        "os.fork() or time.sleep(30)\n"  # a child that keeps the pipe open
        "print(views._child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        pid = int(child.stdout.readline())
        deadline = time.monotonic() + 20
        while exists(pid):
            assert time.monotonic() < deadline, "it outlives its trainer"
            time.sleep(0.05)
        assert len(table(tmp_path)) == 4
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


CHATTY = """
import sys
from launcher.run.trackers import view_process
from launcher.run.trackers.csv import Table
class Chatty(Table):
    def row(self, row, timing):
        print("chatter" * 30_000, flush=True)
        super().row(row, timing)
        if row["step"] == 3:
            raise OSError("the server is gone")
view_process.make_view = lambda name, run_dir: Chatty(run_dir)
view_process.main()
"""


def test_what_trackers_say_does_not_block_them_and_an_error_is_told(tmp_path):
    _record(tmp_path, 3)
    child = subprocess.Popen(
        [sys.executable, "-c", CHATTY, str(tmp_path), str(os.getpid()), "csv"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert child.wait(timeout=60) == 1, "with nobody reading"
    assert child.communicate()[0] == b"OSError: the server is gone\n"
    assert len(table(tmp_path)) == 3


@pytest.mark.parametrize("words", ["trackers=tensorboard", "trackers=[wandb,tensorbord]"])
def test_wrong_trackers_are_refused(words, tmp_path):
    run = train([words], tmp_path, name="../io").wait()
    assert run.status == [2] and "trackers=" in run.err() and "tensorboard, csv" in run.err()


def test_a_missing_tensorboard_is_one_sentence(monkeypatch):
    import importlib.util

    from test_composition import compose

    from launcher.core.errors import ConfigError

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    with pytest.raises(ConfigError, match=r"pip install 'hydra-accelerate-launcher\[tensorboard\]'"):
        compose("trackers=[tensorboard]")
    compose("trackers=[csv]")


OWN = """
class Mine:
    def __init__(self, run_dir):
        self.file = (run_dir / "mine.txt").open("w")

    def row(self, row, timing):
        if row["step"] == 5 and (row.get("train/loss") or 0) > 1e9:
            raise ValueError("strange")
        print(row["step"], "time/elapsed" in timing or bool(timing), file=self.file)

    def flush(self):
        self.file.flush()

    def close(self, summary):
        print(summary.get("status"), file=self.file, flush=True)
"""


def test_a_tracker_of_ones_own_is_shown_every_row(tmp_path):
    """Also the rows of before a resume; what cannot be imported is refused before anything is made."""
    (tmp_path / "own.py").write_text(OWN)
    words = [
        "epochs=6",
        "log_every=7",
        "threads=1",
        "scheduler=constant",
        "hydra.run.dir=run",
        "trackers=[csv,own.Mine]",
    ]
    train([*words, "max_steps=21"], tmp_path).ok()
    train(words, tmp_path).ok()
    steps = [str(row["step"]) for row in rows(tmp_path / "run")]
    assert (tmp_path / "run/mine.txt").read_text().split() == [*sum(([step, "True"] for step in steps), []), "finished"]
    refusals = {
        "own.Yours": "own.Yours",
        "nowhere.Mine": "nowhere",
        "own": "or classes of your own",
        "os.system": "no class with the methods",
    }
    for name, message in refusals.items():
        refused = train([*words[:3], "hydra.run.dir=other", f"trackers=[{name}]"], tmp_path).wait()
        assert refused.status == [2] and "trackers" in refused.err() and message in refused.err(), refused.err()
        assert not (tmp_path / "other").exists()
