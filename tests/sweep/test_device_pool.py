"""hydra/launcher=device_pool: any Hydra application in processes of its own, resumed, stopped, and told in words."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hydra.errors import CompactHydraException
from processes import REPOSITORY
from sweeps import own_tmp, wait_for

from launcher.run.lock import is_held
from launcher.sweep import device_pool
from launcher.sweep.leases import Pool

EXAMPLE = REPOSITORY / "examples/hydra_app/app.py"
# A program that misbehaves on request, and notes what it was given.
OWN = """
import atexit, os, random, signal, sys, threading, time
import hydra, numpy
imported = os.getpid()

class Picky(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

@hydra.main(version_base=None)
def main(cfg):
    atexit.register(lambda: open(f"{cfg.mode}.ended", "w").close())
    print("given", os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LAUNCHER_DEVICES"], os.environ.get("WORLD_SIZE"))
    if cfg.mode == "raise":
        raise ValueError("a wheel came off")
    if cfg.mode == "picky":
        raise Picky(1, 2)
    if cfg.mode == "exit":
        sys.exit(0)
    if cfg.mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.mode == "lock":
        return threading.Lock()
    time.sleep(cfg.get("pause", 0))
    return imported, os.getpid(), random.random(), numpy.random.rand(), sorted(os.sched_getaffinity(0))

if __name__ == "__main__":
    main()
"""


def start(words, place, program="own.py", **environment):
    variables = os.environ | {"TMPDIR": own_tmp(place)} | environment
    return subprocess.Popen(
        [sys.executable, str(program), "-m", *words],
        cwd=place, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip


def run(words, place, program="own.py", **environment):
    process = start(words, place, program, **environment)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def value(path):
    return pickle.loads((path / "job_return.pkl").read_bytes()).return_value


POOL = ["hydra/launcher=device_pool", "hydra.sweep.dir=jobs", "hydra.sweep.subdir=${mode}"]


def test_jobs_have_processes_devices_and_numbers_of_their_own_and_failures_are_told(place):
    words = ["+mode=one,two,raise,picky,exit,kill,lock", *POOL, "hydra.launcher.devices=2"]
    status, out, err = run(words, place, CUDA_VISIBLE_DEVICES="")
    assert status == 1 and "2/7" in out and err.count("FAILED") == 5
    assert err.rstrip().endswith("\nValueError: a wheel came off")  # of the first that failed, raised by Hydra
    jobs = place / "jobs"
    one, two = value(jobs / "one"), value(jobs / "two")
    assert one[0] == two[0] != one[1] != two[1]  # the program was imported once, in another process
    assert one[2] != two[2] and one[3] != two[3] and len(one[4]) == 1  # other numbers; on one core
    for name in ("one", "two"):
        assert (jobs / name / "output.log").read_text() in ("given  0 None\n", "given  1 None\n")
        assert (place / f"{name}.ended").exists()
    reasons = {
        "raise": "ValueError: a wheel came off",
        "picky": "Picky: 1 and 2",
        "exit": "RuntimeError: the program called sys.exit(0)",
        "kill": "rank 0 was killed by SIGKILL, perhaps by the system for lack of memory",
        "lock": "TypeError: what the function returned cannot be kept for the sweep (TypeError: cannot pickle "
        "'_thread.lock' object)",
    }
    for name, reason in reasons.items():
        assert json.loads((jobs / name / "failed.json").read_text())["reason"] == reason
        assert f"({'+mode=' + name}): {reason}" in err

    (place / "own.py").write_text(OWN.replace("cfg.mode ==", "False and cfg.mode =="))  # cured
    before = {name: (jobs / name / "job_return.pkl").stat().st_mtime_ns for name in ("one", "two")}
    status, out, err = run(words, place, CUDA_VISIBLE_DEVICES="")
    assert status == 0 and "2 finished before, 5 to try again" in out, err
    assert before == {name: (jobs / name / "job_return.pkl").stat().st_mtime_ns for name in before}
    assert not list(jobs.glob("*/failed.json"))


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_what_was_begun_with_other_settings_is_refused_and_can_be_run_anew(hydra_sweep_runner, tmp_path):
    place = tmp_path / "jobs"

    def sweep(*words):
        program = None, "hydra.test_utils.a_module", None, "configs", "compose"
        return hydra_sweep_runner(*program, ["hydra/launcher=device_pool", *words], place)

    with sweep("bar=1,2"):  # which removes the directory at its end
        stamps = [(place / f"{number}/job_return.pkl").stat().st_mtime_ns for number in (0, 1)]
        with pytest.raises(CompactHydraException, match=r"job 0 .* another config:\n  bar: 1 -> 3\n  new: absent -> a"):
            sweep("bar=3,2", "+new=a").__enter__()
        with pytest.raises(CompactHydraException, match="subdir=same: is the directory of job 0 and of job 1"):
            sweep("bar=1,2", "hydra.sweep.subdir=same").__enter__()
        with pytest.raises(CompactHydraException, match=r"hydra.launcher.devices_per_run=0: must be"):
            sweep("bar=1,2", "hydra.launcher.devices_per_run=0").__enter__()
        assert stamps == [(place / f"{number}/job_return.pkl").stat().st_mtime_ns for number in (0, 1)]
        (again,) = sweep("bar=1,2").__enter__().returns
        assert stamps == [(place / f"{number}/job_return.pkl").stat().st_mtime_ns for number in (0, 1)]
        assert [job.return_value for job in again] == [100, 100] and [job.cfg.bar for job in again] == [1, 2]
        (anew,) = sweep("bar=1,3", "hydra.launcher.resume=false").__enter__().returns
        assert [job.cfg.bar for job in anew] == [1, 3]
        assert stamps[0] != (place / "0/job_return.pkl").stat().st_mtime_ns


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_one_process_has_all_gpus_of_its_job(hydra_sweep_runner, tmp_path, monkeypatch):
    """Four pretended GPUs for two jobs that take two each."""
    monkeypatch.setattr(device_pool.PoolOptions, "place", lambda self, settings: ("gpu", 1))
    pool = Pool("gpu", {name: f"{tmp_path.name}-{name}" for name in "0123"})
    monkeypatch.setattr(device_pool, "open_pools", lambda trials, options: {"gpu": pool})

    def devices(cfg):
        return os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("WORLD_SIZE"), os.environ.get("RANK")

    words = ["hydra/launcher=device_pool", "bar=1,2", "hydra.launcher.devices_per_run=2"]
    program = None, "hydra.test_utils.a_module", devices, "configs", "compose"
    with hydra_sweep_runner(*program, words, tmp_path / "jobs") as sweep:
        assert [job.return_value for job in sweep.returns[0]] == [("0,1", None, None), ("2,3", None, None)]


def test_a_request_to_stop_ends_the_jobs_and_the_sweep(place):
    process = start(["+mode=one,two", "+pause=60", *POOL, "hydra.launcher.devices=2"], place)
    wait_for(lambda: len(list(place.glob("jobs/*/job.json"))) == 2, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 15
    assert "stopped    (SIGTERM). To go on:\n  python own.py -m +mode=one,two" in out and "hydra.sweep.dir=jobs" in out
    assert not any(is_held(path) for path in place.glob("jobs/*")) and not list(place.glob("jobs/*/failed.json"))
    assert "Traceback" not in err


@pytest.mark.soak
def test_seeds_that_a_program_gives_while_it_is_imported_are_those_of_every_job(place):
    (place / "own.py").write_text(OWN.replace("imported =", "random.seed(1); numpy.random.seed(1)\nimported ="))
    status, _, err = run(["+mode=one,two", *POOL, "hydra.launcher.devices=2"], place)
    assert status == 0, err
    for name in ("one", "two"):
        drawn = value(place / "jobs" / name)[2:4]
        assert drawn == (random.Random(1).random(), np.random.RandomState(1).rand())


@pytest.mark.soak
def test_a_program_without_the_guard_of_its_main_module_is_told_so(place):
    """Hydra finds its config in what is only imported, and would begin the sweep anew in there."""
    config = f"config_path={str(EXAMPLE.parent / 'conf')!r}, config_name='config'"
    program = OWN.partition("if __name__")[0].replace("version_base=None", f"version_base=None, {config}")
    (place / "own.py").write_text(program + "main()\n")
    status, _, err = run(["+mode=one", *POOL], place)
    assert status == 1 and 'Put that call under `if __name__ == "__main__":`' in err


@pytest.mark.soak
def test_the_example_is_killed_and_goes_on(tmp_path):
    """SIGKILL of the launcher as the first job has finished: only the others are run, and give what one alone gives."""
    steps = "steps=15000"
    words = ["degree=1,2,3", steps, "hydra.sweep.dir=jobs", "hydra.launcher.devices=1"]
    process = start(words, tmp_path, EXAMPLE)
    wait_for(lambda: (tmp_path / "jobs/0/job_return.pkl").exists() and (tmp_path / "jobs/1/job.json").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while any(is_held(path) for path in tmp_path.glob("jobs/*")):
        time.sleep(0.05)
    done = [number for number in range(3) if (tmp_path / f"jobs/{number}/job_return.pkl").exists()]
    assert 0 in done and 2 not in done
    stamp = (tmp_path / "jobs/0/job_return.pkl").stat().st_mtime_ns
    status, out, err = run(words, tmp_path, EXAMPLE)
    assert status == 0 and f"{len(done)} finished before" in out, (out, err)
    assert (tmp_path / "jobs/0/job_return.pkl").stat().st_mtime_ns == stamp
    alone = [sys.executable, str(EXAMPLE), "degree=2", steps, "hydra.run.dir=alone"]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert np.array_equal(np.load(tmp_path / "jobs/1/weights.npy"), np.load(tmp_path / "alone/weights.npy"))
    assert value(tmp_path / "jobs/2") < value(tmp_path / "jobs/0")  # a line fits a sine badly
    assert (tmp_path / "jobs/2/app.log").read_text().count("degree 3") == 1
