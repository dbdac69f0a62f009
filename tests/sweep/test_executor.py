"""Grids of real processes: isolated, resumable, never doubled, on devices that nobody else has."""

import csv
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import REPOSITORY, free_port

from launcher.core.errors import ConfigError
from launcher.sweep import comparison, devices
from launcher.sweep.trials import name_of, state_of

TRAIN = str(REPOSITORY / "launcher/train.py")

# A model that misbehaves on request in its third step, on its last rank, and notes when it lived and on what.
OWN = """
import atexit, os, shutil, signal, time
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes, mode="ok", delay=0.0):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, num_classes)
        self.mode, self.delay, self.steps = mode, delay, 0
        self.note("begin")
        if mode == "late":
            from launcher.run.reporter import Reporter
            show = Reporter.show
            Reporter.show = lambda *given: (time.sleep(17), show(*given))
    def note(self, what):
        if "NOTES" in os.environ:
            line = f"{time.time()} {what} {os.getpid()} {os.environ['LAUNCHER_DEVICES']}\\n"
            with open(os.environ["NOTES"], "a") as file:
                file.write(line)
    def forward(self, x):
        self.steps += self.training
        last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
        if self.training and self.delay:
            time.sleep(self.delay)
        if self.steps == 4 and last and "CURED" not in os.environ:
            if self.mode == "raise":
                raise RuntimeError("a wheel came off")
            if self.mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.mode == "hang":
                time.sleep(1000)
            if self.mode == "spin":  # as a process that waits for a GPU which never answers
                while True: pass
            if self.mode == "vanish":  # with its directory, as on a disk that nothing can be written to
                shutil.rmtree(os.path.dirname(os.readlink("/proc/self/fd/1")))
                os._exit(1)
        return self.layer(x.flatten(1))
"""
OWN_MODEL = ["model._target_=own.Net", "epochs=1", "threads=1", "wandb.mode=disabled", "hydra.sweep.dir=grid"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def own_tmp(place):
    """Where the grids of a test have their locks: beside it, with a name longer than those of sockets can be."""
    path = place.parent / f"{place.name}-{'t' * 100}"
    path.mkdir(exist_ok=True)
    return str(path)


def start(words, place, launcher=(), **environment):
    variables = os.environ | {"TMPDIR": own_tmp(place), "WANDB_MODE": "disabled"} | environment
    return subprocess.Popen(
        [*(launcher or [sys.executable]), TRAIN, "-m", *words],
        cwd=place, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip


def end(process, timeout=150):
    """Status, output and errors; it is killed where it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"it did not end:\n{out}\n{err}")
    return process.returncode, out, err


def points(directory):
    """Run directories by the value of what varies."""
    return {path.name: path for path in sorted(Path(directory).iterdir()) if path.is_dir()}


def summary(path):
    return json.loads((path / "summary.json").read_text())


def of(directory, text):
    found = [path for name, path in points(directory).items() if text in name]
    assert len(found) == 1, (text, list(points(directory)))
    return found[0]


def weights(path):
    newest = max((path / "checkpoints").glob("step_*/model.safetensors"))
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def snapshot(path):
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}


def wait_for(condition, process, timeout=90):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


# --- Names, devices, options ---------------------------------------------------------------------------------------


def test_a_name_says_what_the_point_is():
    name = name_of(["optimizer=adam", "epochs=3", "wandb.mode=disabled", "threads=2"], frozenset())
    assert name == "epochs=3,optimizer=adam"
    assert name_of(["threads=2", "seed=1"], frozenset({"threads"})) == "seed=1,threads=2"
    assert name_of([], frozenset()) == "defaults"


def test_names_are_safe_short_and_different():
    hard = ["a=[8,16]", "a=8,16", "a=../../etc", "a=x/y", "a='x y'", "a=é", "a=" + "x" * 300, "a=" + "x" * 301, ".a=1"]
    names = [name_of([text], frozenset()) for text in hard]
    assert len(set(names)) == len(hard)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.,=+-]{0,149}", name), name


def test_a_device_is_lent_once_over_all_pools(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    locks = {str(number): str(number) for number in range(4)}
    one, two = devices.Pool("gpu", locks), devices.Pool("gpu", locks)
    first, second = one.take(2), two.take(2)
    assert {lease.device for lease in first} | {lease.device for lease in second} == set(locks)
    assert one.take(1) is None and two.take(1) is None
    assert one.holders() == [f"{lease.device}: pid {os.getpid()}" for lease in second]
    one.give_back(first)
    assert two.take(3) is None  # and the two it could get are free again
    assert len(one.take(2)) == 2


def test_a_device_stays_lent_until_the_last_process_on_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool = devices.Pool("gpu", {"0": "0"})
    (lease,) = pool.take(1)
    child = subprocess.Popen(["sleep", "30"], pass_fds=[lease.handle])
    os.close(lease.handle)  # as if this process had been killed
    other = devices.Pool("gpu", {"0": "0"})
    assert other.take(1) is None
    child.kill()
    child.wait()
    assert len(other.take(1)) == 1


def test_devices_that_are_asked_for():
    there = {"0": "a", "1": "b"}
    assert devices.choose("auto", there, "gpu") == there
    assert devices.choose(1, there, "gpu") == {"0": "a"}
    assert devices.choose([1], there, "gpu") == {"1": "b"}
    assert len(devices.choose(4, there, "cpu")) == 4
    for asked in (3, [2], [0, 0], [], 0, "some", True):
        with pytest.raises(ConfigError, match=r"hydra\.launcher\.devices"):
            devices.choose(asked, there, "gpu")


# --- Wrong input ---------------------------------------------------------------------------------------------------

WRONG = {
    "unknown override": (["optimizer.lrr=0.1,0.2"], ["optimizer.lrr", "optimizer.lr"]),
    "unknown option": (["optimizer=adam,sgdd"], ["point 1", "optimizer=sgdd", "Did you mean sgd"]),
    "wrong type": (["epochs=1,many"], ["point 1", "epochs=many", "whole number"]),
    "wrong value": (["optimizer.lr=0.1,-0.1", "seed=0,1"], ["point 2", "optimizer.lr=-0.1", "greater than 0"]),
    "empty list": (["seed=range(0,0)"], ["seed=range(0,0)", "nothing"]),
    "too many devices": (["seed=0,1", "hydra.launcher.devices_per_run=99"], ["devices_per_run=99", "point 0", "cores"]),
    "no limit": (["seed=0,1", "hydra.launcher.max_points=null"], ["hydra.launcher.max_points=None", "whole number"]),
    "a limit in words": (["seed=0,1", "hydra.launcher.max_points=many"], ["max_points=many", "whole number"]),
    "batches of none": (["seed=0,1", "hydra.sweeper.max_batch_size=0"], ["max_batch_size=0", "whole number"]),
    "too many points": (["seed=range(100)", "epochs=range(1,1001)"], ["100,000", "hydra.launcher.max_points"]),
    "the same twice": (["seed=0,0"], ["point 1", "same as point 0"]),
    "no fp16 on a CPU": (["mixed_precision=no,fp16", "device=cpu"], ["point 1", "fp16", "bf16"]),
    "launcher's own": (["seed=0,1", "hydra.launcher.parallel=many"], ["hydra.launcher.parallel=many", "whole number"]),
    "unknown of the launcher": (["seed=0,1", "hydra.launcher.device=1"], ["hydra.launcher.device"]),
    "a file in the way": (["seed=0,1", "hydra.sweep.dir=own.py/grid"], ["own.py", "file"]),
    "no place": (["seed=0,1", "hydra.sweep.dir=/proc/none/grid"], ["hydra.sweep.dir=/proc/none/grid", "another"]),
}


def test_wrong_input_is_refused_before_anything_starts(place):
    before = sorted(path.name for path in place.iterdir())
    running = {what: start([*words, "wandb.mode=disabled"], place) for what, (words, _) in WRONG.items()}
    for what, process in running.items():
        status, _, err = end(process)
        assert status == 2, (what, err)
        assert err.startswith("error: ") and "Traceback" not in err, (what, err)
        for text in WRONG[what][1]:
            assert text in err, (what, err)
    assert sorted(path.name for path in place.iterdir()) == before


# --- Whole grids ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_failures_stay_alone_and_are_retried_while_the_finished_are_left_alone(place):
    """A point each that works, raises, is killed, hangs, spins, loses its directory; then again, all of them cured."""
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
    found = points(place / "grid")
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
def test_a_signal_stops_every_point_with_a_checkpoint_and_the_command_it_prints_goes_on(number, place):
    """Ctrl-C, and what `timeout` or torchrun send: to the whole process group."""
    words = ["seed=0,1,2", "+model.delay=0.1", *OWN_MODEL, "epochs=4"]
    first = start(words, place)
    wait_for(lambda: len(list(place.glob("grid/*/metrics.jsonl"))) == 2, first)
    status, _, err = end(start(words, place))
    assert status == 2 and "a grid runs in it" in err and str(first.pid) in err
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
    assert [summary(path)["status"] for path in points(place / "grid").values()] == ["finished"] * 3


@pytest.mark.soak
def test_points_of_every_batch_have_names_of_their_own(place):
    """What changes no result is in them where it is swept; hydra.sweep.subdir may refer to what Hydra knows."""
    name = "hydra.sweep.subdir='${hydra.runtime.choices.model}${seed}/${hydra.job.override_dirname}'"
    words = ["log_every=5,10", "seed=0,1", "epochs=1", "hydra.sweeper.max_batch_size=2", "hydra.sweep.dir=grid", name]
    status, out, err = end(start(words, place))
    assert status == 0, (out, err)
    found = {str(path.parent.relative_to(place / "grid")) for path in place.glob("grid/*/*/summary.json")}
    assert found == {f"mlp{seed}/epochs=1,log_every={every},seed={seed}" for seed in (0, 1) for every in (5, 10)}


@pytest.mark.soak
def test_a_point_is_what_the_same_command_gives_alone(place):
    """Bit for bit; and the command is the one that the comparison names."""
    words = ["optimizer=sgd,adam", "epochs=1", "model.hidden=[8]", "wandb.mode=disabled", "hydra.sweep.dir=grid"]
    status, out, err = end(start(words, place))
    assert status == 0, err
    best = comparison.read_grid(place / "grid", None, None).measured[0]
    command = shlex.split(next(line for line in out.splitlines() if line.strip().startswith("python ")))
    subprocess.run(
        [sys.executable, *command[1:], "hydra.run.dir=alone"], cwd=place, check=True, capture_output=True, timeout=120
    )
    assert weights(place / "alone") == weights(best.path)
    assert (place / "alone/metrics.jsonl").read_text() == (best.path / "metrics.jsonl").read_text()
    for name in (".hydra/config.yaml", "train.log", "report.html", "curves.png"):
        assert (best.path / name).stat().st_size > 0


# --- The comparison ------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """A grid's files, with names that would break a page."""
    values = {}
    for number, (lr, seed) in enumerate((lr, seed) for lr in ("0.1", "0.01") for seed in (0, 1, 2)):
        path = tmp_path / f"p{number}"
        (path / ".hydra").mkdir(parents=True)
        loss = [1.0, 0.5 + 0.1 * seed + (0.3 if lr == "0.01" else 0)]
        values[lr, seed] = loss[1]
        overrides = [f"optimizer.lr={lr}", f"seed={seed}", "wandb.name='<b>$x_1$</b>'", "hydra.run.dir=x"]
        (path / ".hydra/overrides.yaml").write_text(json.dumps(overrides))
        config = {"optimizer": {"lr": float(lr)}, "seed": seed, "checkpoint": {"best": "eval/loss", "best_mode": "min"}}
        (path / ".hydra/config.yaml").write_text(json.dumps(config))
        rows = [{"step": s, "epoch": float(s), "eval/loss": v, "eval/accuracy": 1 - v} for s, v in enumerate(loss, 1)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        figures = {"eval/loss": loss[1], "eval/accuracy": 1 - loss[1]}
        (path / "summary.json").write_text(json.dumps({"status": "finished", "final": figures, "best": figures}))
    planned = {"bad": ["optimizer.lr=<script>alert(1)</script>", "seed=0"]}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/failed.json").write_text(json.dumps({"reason": "<script>no</script>", "output": "</pre><script>"}))
    (tmp_path / "grid.json").write_text(json.dumps({"points": planned, "script": "launcher/train.py"}))
    return tmp_path, values


def test_the_comparison_counts_right(made, capsys):
    path, values = made
    found = comparison.compare(path, None, None)
    assert [entry.value for entry in found.measured] == sorted(values.values())
    assert found.varied == ["optimizer.lr", "seed"]
    (label, best), *_ = comparison.seeds(found)
    assert label == "optimizer.lr=0.1" and sorted(best) == sorted(values["0.1", seed] for seed in (0, 1, 2))
    (first, at_first), (second, at_second) = comparison.effects(found)["optimizer.lr"]
    assert (first, second) == ("0.01", "0.1")
    assert statistics.fmean(at_first) == pytest.approx(0.9) and statistics.fmean(at_second) == pytest.approx(0.6)
    rows = list(csv.DictReader((path / "grid.csv").open()))
    assert len(rows) == 7 and [row["state"] for row in rows] == ["finished"] * 6 + ["failed"]
    assert float(rows[0]["eval/loss"]) == 0.5 and rows[0]["optimizer.lr"] == "0.1" and rows[0]["seed"] == "0"
    out = capsys.readouterr().out
    assert "python launcher/train.py optimizer.lr=0.1 seed=0" in out and "0.6 ± 0.1 of 3 seeds" in out
    higher = comparison.compare(path, "eval/accuracy", None)
    assert higher.mode == "max" and higher.measured[0].value == 0.5
    with pytest.raises(ConfigError, match="eval/accuracy"):
        comparison.compare(path, "eval/acuracy", None)
    capsys.readouterr()
    comparison.conclude(path, "eval/acuracy", None)
    said = capsys.readouterr().out
    assert "metric=eval/acuracy: no point has it. There are: eval/a" in said and "grid.html" in said
    with pytest.raises(ConfigError, match="no grid"):
        comparison.compare(path / "p0/.hydra", None, None)


def test_the_page_needs_nothing_else_and_trusts_no_text(made):
    path, _ = made
    comparison.compare(path, None, None)
    page = (path / "grid.html").read_text()
    assert "<script" not in page and "&lt;script&gt;no" in page
    assert not re.search(r'(src|href)="(https?:)?//', page) and page.count("<svg") == 3
    assert (path / "grid.png").stat().st_size > 10_000


def test_a_diverged_point_comes_last_of_those_measured(made):
    path, _ = made
    (path / "p0/summary.json").write_text('{"status": "finished", "final": {"eval/loss": NaN}, "best": {}}')
    found = comparison.compare(path, None, None)
    assert math.isnan(found.measured[-1].value) and found.measured[0].value == pytest.approx(0.6)


# --- Long ones -----------------------------------------------------------------------------------------------------


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.soak
def test_the_parent_of_all_points_is_killed_and_no_point_suffers(place):
    words = ["seed=0,1,2", "+model.delay=0.05", *OWN_MODEL, "epochs=2", "log_every=1"]
    disturbed = start(words, place)

    def parents():
        found = children(disturbed.pid)
        return [child for child in found if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]

    # Once while it imports torch and the first point waits for it, once while points run.
    for moment in (lambda: list(place.glob("grid/*")), lambda: len(list(place.glob("grid/*/metrics.jsonl"))) >= 2):
        wait_for(lambda now=moment: now() and parents(), disturbed)
        os.kill(parents()[0], signal.SIGKILL)
    status, out, err = end(disturbed)
    assert status == 0, (out, err)
    assert not list(place.glob("grid/*/failed.json"))
    calm = place / "calm"
    calm.mkdir(parents=True)
    shutil.copy(place / "own.py", calm)
    status, _, err = end(start(words, calm))
    assert status == 0, err
    for name, path in points(place / "grid").items():
        assert weights(path) == weights(calm / "grid" / name), name


@pytest.mark.soak
def test_a_point_that_takes_too_long_fails_with_what_it_has_saved(place):
    words = ["+model.delay=0.01,0.3", "epochs=2", "hydra.launcher.max_time_per_run=6", "checkpoint.every=5"]
    status, _, err = end(start([*OWN_MODEL, *words], place))
    assert status == 1 and "took longer than hydra.launcher.max_time_per_run (6 s)" in err
    slow = of(place / "grid", "delay=0.3")
    assert not (of(place / "grid", "delay=0.01") / "failed.json").exists() and list(slow.glob("checkpoints/step_*"))
    status, out, err = end(start([*OWN_MODEL, *words[:2], "hydra.launcher.max_time_per_run=90", words[3]], place))
    assert status == 0 and "resume     from step_" in (slow / "train.log").read_text(), (out, err)
    assert summary(slow)["status"] == "finished"


@pytest.mark.soak
def test_a_killed_conductor_loses_nothing_and_doubles_nothing(place):
    words = ["seed=0,1,2,3,4,5", "+model.delay=0.02", *OWN_MODEL, "epochs=2", "log_every=1"]
    notes = place / "notes"
    first = start(words, place, NOTES=str(notes))
    wait_for(lambda: len(list(place.glob("grid/*/summary.json"))) >= 2, first)
    wait_for(lambda: len(list(place.glob("grid/*/metrics.jsonl"))) >= 4, first)
    first.kill()
    first.communicate()
    before = {path: snapshot(path) for path in points(place / "grid").values() if state_of(path) == "finished"}
    assert 2 <= len(before) < 6
    status, out, err = end(start(words, place, NOTES=str(notes)))  # at once: the orphans are still saving
    assert status == 0, (out, err)
    for path, files in before.items():
        assert snapshot(path) == files, path
    calm = place / "calm"
    calm.mkdir()
    shutil.copy(place / "own.py", calm)
    status, _, err = end(start(words, calm))
    assert status == 0, err
    assert points(calm / "grid").keys() == points(place / "grid").keys() and len(points(calm / "grid")) == 6
    for name, path in points(place / "grid").items():
        other = calm / "grid" / name
        assert weights(path) == weights(other), name
        assert (path / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text(), name
        assert not list(path.glob("*/*.new"))


def intervals(notes):
    """Devices and time of each life: from the first note of a process to the next note of the same device's begin."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return [(float(at), pid, frozenset(names.split(","))) for at, _, pid, names in lines]


@pytest.mark.soak
def test_two_grids_share_four_devices_and_never_one(place):
    """Pretended devices, two per point: what the locks say is checked against who was alive on what, and when."""
    notes = place / "notes"
    words = ["hydra.launcher.devices=4", "hydra.launcher.devices_per_run=2", "+model.delay=0.05", *OWN_MODEL]
    both = [
        start([*words, "seed=0,1,2", f"hydra.sweep.dir={name}"], place, NOTES=str(notes)) for name in ("grid", "other")
    ]
    alive: list[dict[int, frozenset[str]]] = []
    while any(process.poll() is None for process in both):
        now = {}
        if notes.exists():
            for _, pid, names in intervals(notes):
                state = Path(f"/proc/{pid}/stat")
                if state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
                    now[int(pid)] = names
        alive.append(now)
        time.sleep(0.02)
    for process in both:
        status, _, err = end(process)
        assert status == 0, err
    most = 0
    for now in alive:
        sets = list(now.values())
        for names in set(sets):
            assert len(names) == 2 and sets.count(names) <= 2  # its two ranks
        flat = [name for names in set(sets) for name in names]
        assert len(flat) == len(set(flat)), now
        most = max(most, len(set(sets)))
    assert most == 2
    for name in ("grid", "other"):
        assert len(points(place / name)) == 3
        assert all(summary(path)["world_size"] == 2 for path in points(place / name).values())


LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master-port"],
}


@pytest.mark.soak
@pytest.mark.parametrize("how", LAUNCHERS)
def test_two_ranks_a_point_under_every_launcher(how, place):
    words = list(LAUNCHERS[how])
    if how != "python":
        words = [shutil.which(words[0], path=str(Path(sys.executable).parent)), *words[1:], str(free_port())]
    own = ["hydra.launcher.devices_per_run=2"] if how == "python" else []
    sweep = ["mixed_precision=no,bf16", "seed=0,1", "epochs=1", "model.hidden=[8]", "wandb.mode=disabled"]
    status, out, err = end(start([*sweep, "hydra.sweep.dir=grid", *own], place, words, ACCELERATE_USE_CPU="1"), 240)
    assert status == 0, (out, err)
    found = points(place / "grid")
    assert len(found) == 4 and all(summary(path)["world_size"] == 2 for path in found.values())
    assert len({weights(path) for path in found.values()}) == 4
    assert out.count("4 points to compose") == 1


@pytest.mark.soak
def test_rank_0_may_take_its_time_for_pictures_and_uploads(place):
    words = ["+model.mode=late", *OWN_MODEL, "hydra.launcher.devices_per_run=2", "device=cpu"]
    status, out, err = end(start(words, place))
    assert status == 0 and "finished in" in out and not list(place.glob("grid/*/failed.json")), (out, err)


@pytest.mark.soak
def test_a_rank_that_fails_ends_its_point_alone_and_soon(place):
    """Two ranks a point; rank 1 of the middle ones raises, is killed, hangs."""
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
