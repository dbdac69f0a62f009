"""hydra/launcher=slurm_array: any Hydra application as a job array of a real SLURM."""

import json
import os
import pickle
import subprocess
import sys

import pytest

from launcher.core.errors import ConfigError
from launcher.slurm.slurm_array import JobArrayOptions

OWN = """
import os, sys, time
import hydra
import helper  # beside the program, which is not in the working directory

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    print("given", os.environ.get("CUDA_VISIBLE_DEVICES"), cfg.mode)
    if cfg.mode == "raise" and "CURED" not in os.environ:
        raise ValueError("a wheel came off")
    return helper.twice(cfg.mode)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/own.py").write_text(OWN)
    (tmp_path / "code/helper.py").write_text("def twice(x):\n    return x + x\n")
    return tmp_path


def run(words, place, slurm, **environment):
    """Status, output and errors of a sweep in the directory `jobs`."""
    program = [sys.executable, str(place / "code/own.py"), "-m", "hydra/launcher=slurm_array", "hydra.sweep.dir=jobs"]
    variables = slurm.environment | environment
    done = subprocess.run([*program, *words], cwd=place, env=variables, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


def value(path):
    return pickle.loads((path / "job_return.pkl").read_bytes()).return_value


def test_jobs_run_are_waited_for_and_those_that_failed_are_submitted_again(slurm, place):
    words = ["+mode=one,raise", "hydra.launcher.wait=true", "hydra.launcher.sbatch.gpus_per_node=2"]
    status, out, err = run(words, place, slurm)
    assert status == 1 and "submitted  2 trials as job array" in out, (out, err)
    assert err.rstrip().endswith("\nValueError: a wheel came off")
    jobs = place / "jobs"
    assert value(jobs / "0") == "oneone"
    assert "given 0,1 one\n" in (jobs / "0/output.log").read_text()  # one process, which has both
    assert json.loads((jobs / "1/failed.json").read_text())["reason"] == "ValueError: a wheel came off"
    stamp = (jobs / "0/job_return.pkl").stat().st_mtime_ns
    status, out, err = run(words, place, slurm, CURED="1")
    assert status == 0 and "1 finished before, 1 to try again" in out and "submitted  1 trials" in out, (out, err)
    assert value(jobs / "1") == "raiseraise" and (jobs / "0/job_return.pkl").stat().st_mtime_ns == stamp


@pytest.mark.soak
def test_nobody_waits_unless_asked_to(slurm, place):
    status, out, err = run(["+mode=one"], place, slurm)  # Hydra's sweeper asks for the value, which is not known
    assert status == 0 and "submitted  1 trials" in out, (out, err)
    (job,) = (json.loads(file.read_text())["job"] for file in place.glob("jobs/submissions/*/job.json"))
    slurm.wait_array(job)
    status, out, _ = run(["+mode=one"], place, slurm)
    assert status == 0 and "1 finished before" in out and "submitted" not in out
    assert value(place / "jobs/0") == "oneone"


def test_wrong_options_are_refused_and_leave_nothing(slurm, place):
    status, _, err = run(["+mode=one", "hydra.launcher.sbatch.partition=nowhere"], place, slurm)
    assert status == 1 and "Traceback" not in err, err
    assert "hydra/launcher=slurm_array, hydra.launcher.sbatch: SLURM does not take this job" in err
    words = ["hydra.launcher.dry_run=true", "+hydra.launcher.sbatch.more.comment=why"]
    status, out, err = run(["+mode=one", *words], place, slurm)
    assert status == 0 and "nothing is submitted" in out, err
    assert "--ntasks-per-node=1" in out and "--comment=why" in out
    assert os.listdir(place / "jobs") == ["multirun.yaml"]


def test_a_job_is_one_process():
    given = {"max_points": 1, "metric": None, "metric_mode": None, "snapshot": False, "max_parallel": None}
    given |= {"max_requeues": 3, "wait": False, "dry_run": False, "resume": True}
    options = JobArrayOptions(**given, cluster={"time": 5})
    options.check()
    assert options.cluster == {"time": 5, "nodes": 1, "ntasks_per_node": 1}
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.sbatch\.ntasks=2: must be 1"):
        JobArrayOptions(**given, cluster={"ntasks": 2}).check()
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.sbatch\.array: the sweep sets this option"):
        JobArrayOptions(**given, cluster={"array": "0-1"}).check()
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.max_requeues=-1: must be"):
        JobArrayOptions(**given | {"max_requeues": -1}, cluster={}).check()
