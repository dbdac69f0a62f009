import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
import sweeps
from sweeps import OWN_MODEL, of, start, summary, trials, wait_for, weights

from launcher.sweep.trials import state_of

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
    pytest.mark.soak,
]


def end(process):
    """Each of its trials imports torch anew."""
    return sweeps.end(process, 400)


def on(cluster, *more):
    return ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", *more]


def undisturbed(words, place, **environment):
    """The same sweep on this machine by itself, in a directory beside."""
    calm = place.parent / f"{place.name}-calm"
    calm.mkdir()
    shutil.copy(place / "own.py", calm)
    status, out, err = end(start(words, calm, **environment))
    assert status == 0, (out, err)
    return calm


def assert_same(place, calm, count):
    """Weights and records of all trials are those of another sweep, to the bit."""
    found, other = trials(place / "grid"), trials(calm / "grid")
    found.pop("submissions")
    assert found.keys() == other.keys() and len(found) == count
    for name, path in found.items():
        assert summary(path)["status"] == "finished", name
        assert weights(path) == weights(other[name]), name
        assert (path / "metrics.jsonl").read_text() == (other[name] / "metrics.jsonl").read_text(), name


def ranks(place):
    """Processes that train in a directory, without their keepers."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if words[1:2] and words[1].startswith(f"{place}/") and "trial.py" in words[1]]


@pytest.fixture
def begin():
    """Start a sweep that does not outlive the test."""
    begun = []

    def begin(words, place, **environment):
        begun.append(start(words, place, **environment))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def test_trials_on_two_nodes_are_those_of_this_machine(two_nodes, place):
    """Also a trial of two ranks, one on each node; what fails is recorded, and tried again by the same command."""
    words = ["optimizer=sgd,adam", *OWN_MODEL]
    status, out, err = end(start([*on(two_nodes), *words], place, **two_nodes.environment))
    assert status == 0 and "cluster    2 nodes, 2 CPUs, 0 GPUs" in out and "[2/2]" in out, (out, err)
    assert_same(place, calm := undisturbed(words, place), 2)
    mode = ["+model.mode=ok,raise", "optimizer=sgd", *OWN_MODEL[:-1], "hydra.sweep.dir=two"]
    mode += ["hydra.launcher.devices_per_run=2", "device=cpu"]
    status, out, err = end(start([*on(two_nodes), *mode], place, **two_nodes.environment))
    assert status == 1 and "a wheel came off" in err, (out, err)
    assert "2 devices" in (of(place / "two", "mode=ok") / "output.log").read_text()
    failed = of(place / "two", "mode=raise")
    assert "a wheel came off" in (failed / "failed.json").read_text() and state_of(failed) == "failed"
    status, out, err = end(start([*on(two_nodes), *mode], place, CURED="1", **two_nodes.environment))
    assert status == 0 and "1 finished before, 1 to try again" in out, (out, err)
    status, out, err = end(start(["+model.mode=ok", *mode[1:]], calm))
    assert status == 0, (out, err)
    alone = of(calm / "two", "Net")
    assert weights(of(place / "two", "mode=ok")) == weights(alone)
    assert (of(place / "two", "mode=ok") / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()


def test_a_node_that_dies_costs_a_trial_the_time_since_its_checkpoint(two_nodes, place, begin):
    words = ["seed=0,1", "+model.delay=0.2", *OWN_MODEL, "epochs=2", "log_every=1", "checkpoint.every=5"]
    running = begin([*on(two_nodes), *words], place, **two_nodes.environment)
    wait_for(lambda: len(list(place.glob("grid/*/checkpoints/step_*/model.safetensors"))) >= 2, running)
    two_nodes.do("kill")
    two_nodes.do("add")
    status, out, err = end(running)
    assert status == 0 and out.count("goes back into the queue (the node of rank 0 died") == 1, (out, err)
    assert "resumed on cpu" in out, out
    assert_same(place, undisturbed(words, place), 2)


def test_a_killed_driver_loses_nothing_and_doubles_nothing(two_nodes, place, begin):
    words = ["seed=0,1", "+model.delay=0.1", *OWN_MODEL, "epochs=2", "log_every=1"]
    first = begin([*on(two_nodes), *words], place, **two_nodes.environment)
    wait_for(lambda: len(list(place.glob("grid/*/metrics.jsonl"))) >= 2, first)
    assert len(ranks(place)) == 2
    first.kill()
    first.communicate()
    status, out, err = end(start([*on(two_nodes), *words], place, **two_nodes.environment))
    assert status == 0 and "to resume" in out, (out, err)
    assert not ranks(place)
    assert_same(place, undisturbed(words, place), 2)


def test_a_signal_stops_every_trial_with_a_checkpoint(two_nodes, place, begin):
    words = ["seed=0,1", "+model.delay=0.3", *OWN_MODEL, "log_every=1"]
    running = begin([*on(two_nodes), *words], place, **two_nodes.environment)
    wait_for(lambda: len(list(place.glob("grid/*/metrics.jsonl"))) == 2, running)
    running.send_signal(signal.SIGTERM)
    status, out, err = end(running)
    assert status == 0 and "stopped    (SIGTERM), everything is saved" in out, (out, err)
    paths = [path for path in trials(place / "grid").values() if path.name != "submissions"]
    assert [state_of(path) for path in paths] == ["stopped"] * 2
    assert all(list(path.glob("checkpoints/step_*/model.safetensors")) for path in paths)
    assert not ranks(place)


def test_a_search_on_the_cluster(two_nodes, place):
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(0.001,1))", "model.hidden=[8]", "threads=1"]
    words += ["hydra.sweeper.n_trials=3", "hydra.sweeper.seed=1", "hydra.sweeper.pruner=asha", "epochs=2"]
    words += ["hydra.sweeper.reduction_factor=2", "hydra.launcher.max_parallel=1", "wandb.mode=disabled"]
    words += ["hydra.sweep.dir=grid"]
    status, out, err = end(start([*on(two_nodes), *words], place, **two_nodes.environment))
    assert status == 0, (out, err)
    calm = undisturbed(words, place)
    found, other = trials(place / "grid"), trials(calm / "grid")
    found.pop("submissions")
    assert found.keys() == other.keys()
    for name, path in found.items():
        assert state_of(path) == state_of(other[name]) and weights(path) == weights(other[name]), name


def test_what_the_cluster_cannot_do_is_refused(two_nodes, place):
    before = sorted(path.name for path in place.iterdir())
    wrong = {
        "hydra.launcher.devices_per_run=3": "room for 2 of them (2 nodes, 2 CPUs, 0 GPUs",
        "hydra.launcher.address=127.0.0.1:1": "hydra.launcher.address=127.0.0.1:1: this machine cannot join",
        "hydra.launcher.address=ray://127.0.0.1:1": "must be auto, local, or host:port",
    }
    words = [*on(two_nodes), "seed=0,1", *OWN_MODEL]
    running = {word: start([*words, word], place, **two_nodes.environment) for word in wrong}
    for word, process in running.items():
        status, _, err = end(process)
        assert status == 2 and err.startswith("error: ") and wrong[word] in err and "Traceback" not in err, err
    assert sorted(path.name for path in place.iterdir()) == before


CHECK = """
import sys
from pathlib import Path
from launcher.core.errors import ConfigError
from launcher.ray_cluster.placement import Cluster
cluster = Cluster(sys.argv[1])
cluster.check_places(Path(sys.argv[2]) / "not/yet", [sys.argv[2]])
try:
    cluster.check_places(Path(sys.argv[2]), [sys.argv[2], "/nowhere/else"])
except ConfigError as error:
    print(error)
"""


def test_a_node_that_does_not_see_what_trials_need_is_named(two_nodes, tmp_path):
    environment = os.environ | two_nodes.environment
    command = [sys.executable, "-c", CHECK, two_nodes.address, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "does not see /nowhere/else" in done.stdout, done
    assert not list(tmp_path.iterdir())


def test_a_cluster_of_this_machine_alone_goes_with_its_sweep(ray_environment, place):
    words = ["hydra/launcher=ray", "hydra.launcher.address=local", "hydra.launcher.devices_per_run=2", *OWN_MODEL]
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as directory:
        status, out, err = end(start(words, place, **ray_environment | {"RAY_TMPDIR": directory}))
        assert status == 0 and "cluster    1 node," in out, (out, err)
        assert "2 devices" in (of(place / "grid", "epochs=1") / "output.log").read_text()
        deadline = time.monotonic() + 30
        while any(directory in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])):
            assert time.monotonic() < deadline, "Ray is still there"
            time.sleep(0.5)
