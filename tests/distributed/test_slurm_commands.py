"""SLURM's commands on a real cluster, and where there is none."""

import os
import sys

import pytest

from launcher.distributed import slurm_commands


@pytest.fixture
def cluster(slurm, monkeypatch):
    """This process calls the commands of the tests' cluster."""
    for name, value in slurm.environment.items():
        if name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, value)
    return slurm


def test_the_tasks_of_an_array_are_seen_until_they_end(cluster, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/bash\nsleep 60\n")
    command = ["sbatch", "--parsable", "--array=0-2%1", f"--output={tmp_path}/%a.log"]
    assert "to start at" in slurm_commands.try_submission(command, script.read_text(), os.environ)
    assert cluster.squeue() == []
    job = slurm_commands.submit([*command, str(script)], os.environ)
    assert job.isdigit()
    cluster.wait(f"{job}_0", "RUNNING")
    assert slurm_commands.active_tasks([job]) == {f"{job}_{n}": "PENDING" if n else "RUNNING" for n in range(3)}
    assert slurm_commands.state_and_reason(f"{job}_0")[0] == "RUNNING"
    assert slurm_commands.state_and_reason(f"{job}_1") == ("PENDING", "JobArrayTaskLimit")
    assert not slurm_commands.was_preempted(f"{job}_0")
    cluster.cancel(job)
    assert slurm_commands.active_tasks([job]) == {}


def test_jobs_that_slurm_does_not_know_are_not_active(cluster):
    assert slurm_commands.active_tasks([]) == {} and slurm_commands.active_tasks(["999999"]) == {}
    with pytest.raises(RuntimeError, match="Invalid job id"):
        slurm_commands.requeue("999999")


def test_the_largest_array_is_that_of_the_configuration(cluster):
    assert slurm_commands.largest_array() == 1001  # SLURM's default


def test_without_slurm_the_command_is_named(monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    with pytest.raises(RuntimeError, match="squeue --noheader --array --jobs 7 "):
        slurm_commands.active_tasks(["7"])
