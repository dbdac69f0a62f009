"""The real launcher/train.py on a real SLURM: whatever SLURM does to it, the bits of an undisturbed run."""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from kill_loop import OWN, RUN, STEPS, newest, same_bits
from processes import REPOSITORY, rows, summary, train
from slurm_cluster import SEARCH

# The model waits in each step, so that a job can be hit in the middle; the environment says for how long.
CODE = (
    OWN
    + """
import os, time
from launcher.models.mlp import MLP

class Slow(MLP):
    def forward(self, x):
        if self.training:
            time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return super().forward(x)
"""
)
WORDS = [*(word for word in RUN if not word.startswith("hydra.run.dir")), "model._target_=own.Slow", "device=cpu"]
BATCH = REPOSITORY / "slurm/train.sbatch"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    return tmp_path


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same run as so many processes on this machine, without SLURM."""

    @functools.cache
    def of(world):
        place = tmp_path_factory.mktemp(f"local{world}")
        (place / "own.py").write_text(CODE)
        train([*WORDS, "hydra.run.dir=run"], place, world).ok()
        return place

    return of


def environment(place, **more):
    path = os.pathsep.join([os.path.dirname(sys.executable), SEARCH])
    return {"PYTHONPATH": str(place), "WANDB_MODE": "disabled", "PATH": path, **more}


def submit(slurm, place, *options, step_seconds=0.0, **more):
    """Submit slurm/train.sbatch as it is from the repository, with the run in `place`."""
    words = [*WORDS, f"hydra.run.dir={place}/run"]
    variables = environment(place, STEP_SECONDS=str(step_seconds), **more)
    return slurm.sbatch(BATCH, *words, options=options, env=variables, cwd=REPOSITORY)


def wait_for_step(slurm, job, place, step, timeout=60):
    slurm._until(
        f"step {step} of job {job}, which printed {slurm.output(job)}",
        timeout,
        lambda: (place / "run/metrics.jsonl").exists() and any(row["step"] >= step for row in rows(place / "run")),
    )


def check(slurm, job, place, local, world=4, restarts=None, timeout=120):
    """The job went well, in one directory, with the bits of the run that nobody disturbed."""
    record = slurm.wait(job, timeout=timeout)
    assert record["JobState"] == "COMPLETED", slurm.output(job)
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["run"]
    assert summary(place / "run")["world_size"] == world and rows(place / "run")[-1]["step"] == STEPS
    same_bits(local(world), place)
    if restarts is not None:
        assert int(record["Restarts"]) == restarts
        assert len((place / "run/restarts.jsonl").read_text().splitlines()) == restarts


@pytest.mark.soak
def test_two_nodes_of_two_tasks_end_with_the_bits_of_four_local_processes(slurm, local, place):
    job = submit(slurm, place, "--nodes=2")
    check(slurm, job, place, local)
    assert "2 nodes x 2 tasks" in slurm.output(job)
    assert slurm.output(job).count("batch      14 samples per update = 4 devices") == 1  # said once, not by each rank


@pytest.mark.soak
def test_srun_alone_in_an_allocation(slurm, local, place):
    words = ["python", "launcher/train.py", *WORDS, f"hydra.run.dir={place}/run"]
    slurm.run("srun", "--nodes=2", "--ntasks-per-node=2", *words, env=environment(place), cwd=REPOSITORY, timeout=90)
    assert summary(place / "run")["world_size"] == 4
    same_bits(local(4), place)


@pytest.mark.soak
@pytest.mark.parametrize("nodes", [1, 2])
def test_accelerate_launch_in_an_allocation(slurm, local, place, nodes):
    """On one node as everywhere; on several with one srun task each, that starts the node's processes."""
    launch = f"accelerate launch --multi_gpu --num_processes {2 * nodes} --num_machines {nodes}"
    if nodes > 1:
        # The names of these nodes do not resolve. On a cluster: $(scontrol show hostnames | head -1)
        where = "--main_process_ip 127.0.0.1 --main_process_port $((20000 + SLURM_JOB_ID % 10000))"
        launch = f"srun --ntasks-per-node=1 bash -c '{launch} --machine_rank $SLURM_NODEID {where} \"$@\"' -"
    script = f'{launch} launcher/train.py "$@"'
    variables = environment(place, ACCELERATE_USE_CPU="1")
    job = slurm.sbatch(
        script, *WORDS, f"hydra.run.dir={place}/run", options=(f"--nodes={nodes}",), env=variables, cwd=REPOSITORY
    )
    check(slurm, job, place, local, world=2 * nodes)


@pytest.mark.soak
def test_preempted(slurm, local, place):
    job = submit(slurm, place, "--nodes=2", step_seconds=0.1)
    wait_for_step(slurm, job, place, 8)
    asked = time.time()
    urgent = slurm.sbatch("echo here", options=("--partition=urgent", "--nodes=2", "--exclusive"))
    slurm.wait(job, "PENDING", "RUNNING", restarts=1)
    saved = json.loads((place / "run/stopped.json").read_text())
    assert saved["reason"] == "SIGTERM" and saved["step"] == int(newest(place).name[5:])
    assert newest(place).stat().st_mtime - asked < 10  # the grace time, after which SIGKILL comes
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    check(slurm, job, place, local, restarts=1)
    assert f"at step {saved['step']} of {STEPS}" in slurm.output(job)  # no step lost beyond the save


SAMPLES = """
from launcher.data import DatasetSplit

class Samples(torch.utils.data.Dataset):
    def __init__(self, part):
        self.part = part
    def __len__(self):
        return len(self.part)
    def __getitem__(self, number):
        return self.part.inputs[number], self.part.targets[number]

def samples():
    data = load()
    for name in ("train", "validation", "test"):
        setattr(data, name, DatasetSplit(Samples(getattr(data, name))))
    return data
"""


@pytest.mark.soak
@pytest.mark.parametrize("how", ["preempted", "signalled"])
def test_processes_that_load_samples_get_the_signal_too(how, slurm, place):
    """SLURM signals every process of a step."""
    (place / "own.py").write_text(CODE + SAMPLES)
    words = [*WORDS, "data._target_=own.samples", "num_workers=2", f"hydra.run.dir={place}/run"]
    variables = environment(place, STEP_SECONDS="0.1")
    job = slurm.sbatch(BATCH, *words, options=("--nodes=2",), env=variables, cwd=REPOSITORY)
    wait_for_step(slurm, job, place, 8)
    if how == "preempted":
        urgent = slurm.sbatch("echo here", options=("--partition=urgent", "--nodes=2", "--exclusive"))
    else:
        slurm.run("scancel", "--signal=USR1", job)
    slurm.wait(job, "PENDING", "RUNNING", restarts=1)
    assert json.loads((place / "run/stopped.json").read_text())["reason"] == (
        "SIGTERM" if how == "preempted" else "SIGUSR1"
    )
    if how == "preempted":
        assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    assert slurm.wait(job, timeout=120)["JobState"] == "COMPLETED", slurm.output(job)
    assert [row["step"] for row in rows(place / "run")][-1] == STEPS
    assert "Traceback" not in slurm.output(job) and "unexpectedly" not in slurm.output(job)


@pytest.mark.soak
def test_preempted_before_the_first_step(slurm, local, place):
    """The signal meets a process that imports torch and just dies of it: the job goes back into the queue."""
    job = submit(slurm, place, "--nodes=2")
    slurm.wait_output(job, "start 1: ")
    time.sleep(0.5)
    urgent = slurm.sbatch("echo here", options=("--partition=urgent", "--nodes=2", "--exclusive"))
    slurm.wait(job, "PENDING", "RUNNING", restarts=1)
    assert not (place / "run/checkpoints").exists()
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    slurm.wait(job, "RUNNING")
    assert slurm.show(job)[0]["PreemptTime"] == "None"  # else a failure would look like a preemption from now on
    check(slurm, job, place, local, restarts=1)


@pytest.mark.soak
def test_requeued_by_hand_twice(slurm, local, place):
    job = submit(slurm, place, "--nodes=2", step_seconds=0.1, WANDB_MODE="offline")
    for restart in (1, 2):
        wait_for_step(slurm, job, place, 15 * restart)
        slurm.run("scontrol", "requeue", job)
        slurm.wait(job, "RUNNING", restarts=restart)
    check(slurm, job, place, local, restarts=2)
    # One run to W&B: the newest segment holds the whole record, those before it stand aside.
    segments = [path.name for path in (place / "run/wandb").rglob("offline-run-*") if path.is_dir()]
    assert len(segments) >= 3 and len({name.split("-")[3] for name in segments}) == 1
    assert len(list((place / "run/wandb").glob("offline-run-*"))) == 1


@pytest.mark.soak
def test_nearly_out_of_time(slurm, local, place):
    """USR1 a minute before the end of two; the job comes back until it is done, with steps of a second."""
    job = submit(slurm, place, "--nodes=2", "--time=2", "--signal=USR1@60", step_seconds=0.5, MAX_REQUEUES="9")
    slurm.wait(job, "PENDING", "RUNNING", restarts=1, timeout=160)
    check(slurm, job, place, local, timeout=240)
    assert "(SIGUSR1), everything is saved" in slurm.output(job)


@pytest.mark.soak
def test_a_killed_rank_ends_the_job_and_submitting_again_goes_on(slurm, local, place):
    job = submit(slurm, place, "--nodes=2", step_seconds=0.1)
    wait_for_step(slurm, job, place, 15)
    is_rank_3 = b"SLURM_PROCID=3", b"./launcher/train.py"
    (victim,) = (
        pid
        for pid in slurm.processes(job=job)
        if is_rank_3[0] in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        and is_rank_3[1] in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    )
    started = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    record = slurm.wait(job)
    assert time.monotonic() - started < 30
    assert (record["JobState"], record["Restarts"]) == ("FAILED", "0"), slurm.output(job)
    check(slurm, submit(slurm, place, "--nodes=2"), place, local)
