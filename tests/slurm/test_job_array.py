"""Sweeps as job arrays on a real SLURM: nothing is run twice or lost, and what was submitted is what runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from own_project import OWN, git
from processes import REPOSITORY
from slurm_cluster import SEARCH

TRAIN = str(REPOSITORY / "launcher/train.py")
HOSTILE = [
    'it\'s $(touch injected) `touch injected` "$HOME"; exit 1 #',
    "a\n#SBATCH --partition=nowhere\nb",
    "模型 🚀 %a",
]
WORDS = ["model._target_=own.Net", "epochs=1", "threads=1", "device=cpu", "wandb.mode=disabled", "checkpoint.every=1"]


def quoted(text):
    return "'" + text.replace("'", "\\'") + "'"


def start(words, project, slurm=None, **environment):
    base = slurm.environment if slurm else os.environ
    path = os.pathsep.join([os.path.dirname(sys.executable), SEARCH])
    variables = base | {"PATH": path, "NOTES": str(project.parent / "notes")} | environment
    command = [sys.executable, TRAIN, "-m", "hydra/launcher=slurm", "hydra.sweep.dir=grid", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=project, env=variables, stdout=pipe, stderr=pipe, text=True)


def end(process):
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def sweep(words, project, slurm, **environment):
    """Status, output and errors of a sweep on SLURM."""
    return end(start([*WORDS, *words], project, slurm, **environment))


def job_of(project, number):
    return json.loads((project / f"grid/submissions/{number}/job.json").read_text())


def weights(path):
    newest = max((path / "checkpoints").glob("step_*/model.safetensors"))
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def contents(path):
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}


WRONG = {
    "swept options": (["seed=0,1", "cluster.partition=a,b"], ["cluster.partition", "cannot be swept"]),
    "its own option": (["seed=0,1", "+cluster.array=0-9"], ["cluster.array"]),
    "no number": (["seed=0,1", "hydra.launcher.max_parallel=0"], ["hydra.launcher.max_parallel=0", "at least 1"]),
    "a wrong trial": (["seed=0,-1"], ["trial 1", "seed=-1"]),
    "an unknown option": (["seed=0,1", "+cluster.partitoin=x"], ["SLURM does not take this job", "partitoin"]),
    "a search that leaves": (["optimizer.lr=interval(0.1,1)", "hydra/sweeper=optuna"], ["wait=true", "max_parallel=4"]),
    "an unknown partition": (["seed=0,1", "cluster.partition=nowhere"], ["SLURM does not take this job", "partition"]),
}


def test_wrong_input_is_refused_and_leaves_nothing(slurm, project):
    before = sorted(path.name for path in project.iterdir())
    running = {what: start(words, project, slurm) for what, (words, _) in WRONG.items()}
    running["no SLURM"] = start(["seed=0,1"], project, PATH=os.path.dirname(sys.executable))
    for what, process in running.items():
        status, _, err = end(process)
        assert status == 2 and err.startswith("error: ") and "Traceback" not in err, (what, err)
        for text in WRONG.get(what, ([], ["scontrol"]))[1]:
            assert text in err, (what, err)
    assert sorted(path.name for path in project.iterdir()) == before and slurm.squeue() == []


def test_dry_run_shows_the_script_and_submits_nothing(slurm, project):
    words = [f"+model.mode=ok,{quoted(HOSTILE[1])}", "hydra.launcher.dry_run=true", "hydra.launcher.max_parallel=1"]
    status, out, err = sweep([*words, "cluster.time=90"], project, slurm)
    assert status == 0, err
    assert "--array=0-1%1" in out and "--time=90" in out and "srun" in out and "to start at" in out
    assert not (project / "grid").exists() and slurm.squeue() == []


@pytest.mark.soak
def test_a_sweep_of_six_trials(slurm, project):
    """Two at once; one is preempted, one fails; the code changes meanwhile; again submits only what is missing."""
    modes = ["slow", "ok", *map(quoted, HOSTILE), "raise"]
    words = [f"+model.mode={','.join(modes)}", "hydra.launcher.max_parallel=2"]
    status, out, err = sweep(words, project, slurm)
    assert status == 0 and "6 new" in out and "submitted  6 trials" in out, (out, err)
    commit = git(project, "rev-parse", "HEAD")
    (project / "own.py").write_text(OWN.replace("self.steps += self.training", "raise RuntimeError('edited')"))
    git(project, "commit", "-qam", "second")
    job, names = job_of(project, 1)["job"], job_of(project, 1)["points"]
    (slow,) = (index for index, name in enumerate(names) if "mode=slow" in name)
    record = project / "grid" / names[slow] / "metrics.jsonl"

    most, urgent = 0, None
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and (lines := slurm.squeue()):
        running = sum(line.startswith(f"{job}_") and "RUNNING" in line for line in lines)
        most = max(most, running)
        saved = [path.name for path in (record.parent / "checkpoints").glob("step_*[0-9]")]
        if urgent is None and max(saved, default="") >= "step_00000003":
            again = start([*WORDS, *words], project, slurm)
            node = slurm.show(f"{job}_{slow}")[0]["BatchHost"]
            urgent = slurm.sbatch("echo here", options=("--partition=urgent", "--exclusive", f"--nodelist={node}"))
            status, out, err = end(again)  # which sees it run, or wait for its node
            assert status == 0 and "submitted" not in out and ("running" in out or "queued" in out), (out, err)
        time.sleep(0.3)
    assert most == 2 and slurm.wait(urgent)["JobState"] == "COMPLETED", slurm.squeue()
    assert slurm.show(f"{job}_{slow}")[0]["Restarts"] == "1"

    *good, bad = (project / "grid" / name for name in names)
    goes_on = re.search(r"To go on:\n  (.*)", (good[slow] / "output.log").read_text())[1]
    assert re.fullmatch(r"python \S*launcher/train\.py .*\+model\.mode=slow .*hydra\.run\.dir=.+", goes_on), goes_on
    assert [json.loads((path / "summary.json").read_text())["status"] for path in good] == ["finished"] * 5
    assert len({weights(path) for path in good}) == 1  # the mode changes nothing else, the preemption neither
    failed = json.loads((bad / "failed.json").read_text())
    assert "a wheel came off" in failed["reason"] and failed["job"] == f"{job}_5"
    # What was submitted is what ran, and its hostile texts were what the model got.
    notes = [eval(line) for line in (project.parent / "notes").read_text().splitlines()]
    assert {mode for _, mode, _ in notes} == {"slow", "raise", "ok", *HOSTILE}
    assert all("/submissions/1/code/" in file for _, _, file in notes)
    assert json.loads((good[0] / "summary.json").read_text())["git_commit"] == commit
    submitted = json.loads((good[0] / "submitted.json").read_text())
    assert submitted["commit"] == commit and submitted["job"] == f"{job}_0"
    assert not list(project.rglob("injected"))

    (project / "own.py").write_text(OWN)
    untouched = {str(path): contents(path) for path in good}
    status, out, err = sweep([*words, "hydra.launcher.wait=true"], project, slurm, CURED="1")
    assert status == 0 and "5 finished before, 1 to try again" in out and "submitted  1 trials" in out, (out, err)
    assert job_of(project, 2)["points"] == [names[5]] and not (bad / "failed.json").exists()
    assert {str(path): contents(path) for path in good} == untouched
    assert weights(bad) == weights(good[0])
    assert "6 of 6 finished" in (project / "grid/grid.html").read_text()


@pytest.mark.soak
def test_two_nodes_a_trial_a_state_from_outside_and_a_cancelled_array(slurm, project):
    """Each trial of four ranks; the states are seen while it runs; what was cancelled is submitted again."""
    words = ["+model.mode=slow,ok", "cluster.nodes=2", "cluster.gpus_per_node=2", "hydra.launcher.max_parallel=1"]
    status, out, err = sweep(words, project, slurm)
    assert status == 0, (out, err)
    job = job_of(project, 1)["job"]
    slow, ok = (project / "grid" / name for name in job_of(project, 1)["points"])
    slurm._until("a checkpoint", 60, lambda: (slow / "checkpoints").exists())
    done = slurm.run(sys.executable, "-m", "launcher", "compare", "grid", cwd=project)
    assert "running" in done.stdout and "queued" in done.stdout
    slurm.cancel(job)
    status, out, err = sweep([*words, "hydra.launcher.wait=true"], project, slurm)
    assert status == 0 and "1 to resume, 1 new" in out, (out, err)
    assert [json.loads((path / "summary.json").read_text())["world_size"] for path in (slow, ok)] == [4, 4]
    assert weights(slow) == weights(ok)


@pytest.mark.soak
def test_a_search_survives_its_waiting_process(slurm, project):
    """Killed again and again while its jobs go on: each trial is one of the study, run once, judged by the others."""
    words = [
        *WORDS[:1], *WORDS[2:], "epochs=4", "optimizer.lr=tag(log,interval(0.001,1))", "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=6", "hydra.sweeper.pruner=asha", "hydra.sweeper.reduction_factor=2",
        "hydra.launcher.wait=true", "hydra.launcher.max_parallel=2",
    ]  # fmt: skip
    for seconds in (7, 9, 11):
        process = start(words, project, slurm)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    status, out, err = end(start(words, project, slurm))
    assert status == 0, (out, err)
    storage = JournalStorage(JournalFileBackend(str(project / "grid/study.log")))
    found = optuna.load_study(study_name="search", storage=storage).trials
    assert [trial.number for trial in found] == list(range(6))
    assert {trial.state.name for trial in found} == {"COMPLETE", "PRUNED"}
    summaries = [json.loads(file.read_text()) for file in project.glob("grid/*/summary.json")]
    assert len(summaries) == 6
    ended = [summary["best"]["eval/loss"] for summary in summaries if summary["status"] == "finished"]
    assert sorted(ended) == sorted(trial.value for trial in found if trial.state.name == "COMPLETE")
    submitted = [
        name for file in project.glob("grid/submissions/*/job.json") for name in json.loads(file.read_text())["points"]
    ]
    assert set(submitted) == {file.parent.name for file in project.glob("grid/*/summary.json")}
