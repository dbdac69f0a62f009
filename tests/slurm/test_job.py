import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster, found

from launcher.core.errors import ConfigError
from launcher.slurm.job import begin, end, last_step, main, quote, run_directory, sbatch_options, submission_environment

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch /tmp/injected)",
    "`touch /tmp/injected`",
    "$HOME ${HOME} \\$HOME",
    "; exit 1 #",
    "a\nb",
    "\n#SBATCH --partition=nowhere\n",
    "cr\r\nlf\r",
    "tab\tbell\a escape\x1b[0m delete\x7f",
    "back\\slash \\n \\' \\",
    "naïve 模型 🚀",
    "x=[1,2,{a: b}]",
    "*",
    "~",
    "!!",
    "-n",
    "--",
    "",
]
DUMP = "import json, os, sys; print('ARGV', json.dumps(sys.argv[1:]), flush=True)"
# A program that counts its steps in checkpoints/, stops at a signal with a stopped.json, as launcher/train.py does.
COUNTER = """
import json, os, pathlib, signal, sys, time
given = dict(a.split("=", 1) for a in sys.argv[1:])
run, goal, got = pathlib.Path(given["hydra.run.dir"].strip("'")), int(given["steps"]), []
for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(s, lambda number, frame: got.append(signal.Signals(number).name))
checkpoints = run / "checkpoints"
step = max((int(p.name[5:]) for p in checkpoints.glob("step_*")), default=0)
rank = int(os.environ["SLURM_PROCID"])
print(f"rank {rank} starts at {step}", flush=True)
while step < goal and not got:
    time.sleep(0.1)
    step += 1
if rank == 0:
    if "barren" not in given:
        (checkpoints / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
    if step < goal:
        run.mkdir(parents=True, exist_ok=True)
        (run / "stopped.json").write_text(json.dumps({"step": step, "reason": got[0]}))
print(f"rank {rank} ends at {step} {got}", flush=True)
"""


@pytest.fixture
def counter(slurm, tmp_path):
    """Submits slurm/train.sbatch as it is, with a short program in place of launcher/train.py."""
    program = tmp_path / "counter.py"
    program.write_text(COUNTER)

    def submit(*arguments, options=(), **environment):
        environment = {"ENTRY": str(program), **environment}
        script = REPOSITORY / "slurm/train.sbatch"
        return slurm.sbatch(script, *arguments, options=options, env=environment, cwd=REPOSITORY)

    return submit


def test_run_directories():
    job = {"SLURM_JOB_ID": "9"}
    assert run_directory(["a=1"], job) == "outputs/slurm/9"
    assert run_directory(["hydra.run.dir=x", "hydra.run.dir='y z'"], job) == "y z"
    with pytest.raises(ConfigError, match="come"):
        run_directory(["hydra.run.dir=outputs/${now:%H}"], job)
    with pytest.raises(ConfigError, match="hydra/launcher=slurm"):
        run_directory(["-m", "a=1,2"], job)


def test_a_job_without_progress_is_ended(tmp_path):
    run, job = tmp_path / "run", {"SLURM_JOB_ID": "5"}
    begin(run, 2, job)
    assert not run.exists()
    for restart in (1, 2):
        begin(run, 2, job | {"SLURM_RESTART_COUNT": str(restart)})
    with pytest.raises(ConfigError, match="came back 3 times with its newest checkpoint at step 0"):
        begin(run, 2, job | {"SLURM_RESTART_COUNT": "3"})
    (run / "checkpoints/step_00000030").mkdir(parents=True)
    (run / "checkpoints/.step_00000040.partial").mkdir()
    assert last_step(run) == 30
    begin(run, 2, job | {"SLURM_RESTART_COUNT": "3"})
    begin(run, 2, {"SLURM_JOB_ID": "6", "SLURM_RESTART_COUNT": "1"})
    rows = [json.loads(line) for line in (run / "restarts.jsonl").read_text().splitlines()]
    assert [(r["job"], r["restart"], r["step"]) for r in rows] == [("5", 1, 0), ("5", 2, 0), ("5", 3, 30), ("6", 1, 30)]


def test_what_a_person_stopped_stays_stopped(tmp_path):
    """Without a question to SLURM, which is not there."""
    for reason in ("SIGINT", "max_time"):
        (tmp_path / "stopped.json").write_text(json.dumps({"step": 3, "reason": reason}))
        assert end(tmp_path, 0, {"SLURM_JOB_ID": "5"}) is False


def test_nothing_of_this_process_reaches_a_job():
    own = {"RANK": "1", "SLURM_STEP_ID": "0", "MASTER_PORT": "1", "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "1"}
    kept = {"PATH": "/bin", "SLURM_CONF": "c", "SBATCH_PARTITION": "p", "NCCL_DEBUG": "INFO", "WANDB_MODE": "offline"}
    assert submission_environment(own | kept) == kept


def test_options_of_sbatch():
    settings = {"gpus_per_node": 8, "exclusive": True, "requeue": False, "account": None, "comment": "a b"}
    assert sbatch_options(settings) == ["--gpus-per-node=8", "--exclusive", "--comment=a b", "--no-requeue"]


def test_quoting_by_bash():
    line = " ".join(map(quote, HOSTILE))
    assert "\n" not in line and "\r" not in line
    script = f"{sys.executable} -c {quote(DUMP)} {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert found(done.stdout, "ARGV") == [HOSTILE]


def test_what_the_batch_script_refuses(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["directory", f"hydra.run.dir={tmp_path}/file/run"]) == 2
    assert "file is a file" in capsys.readouterr().err
    assert main(["begin", "many", str(tmp_path)]) != 0
    assert capsys.readouterr().err == "MAX_REQUEUES=many: must be a whole number of at least 0.\n"


def test_import_is_light():
    code = "import sys, launcher.slurm.job; print({'torch', 'hydra', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "set()\n"


# On the cluster


def test_hostile_overrides_reach_python_unharmed(slurm, tmp_path):
    """As arguments of a batch script, and written into one."""
    dump = tmp_path / "dump.py"
    dump.write_text(DUMP)
    by_argument = slurm.sbatch(f'srun {sys.executable} {dump} "$@"', *HOSTILE)
    in_script = slurm.sbatch(f"srun {sys.executable} {dump} {' '.join(map(quote, HOSTILE))}")
    for job in (by_argument, in_script):
        record = slurm.wait(job)
        assert record["JobState"] == "COMPLETED" and record["Partition"] == "main", slurm.output(job)
        assert found(slurm.output(job), "ARGV") == [HOSTILE]
    assert not Path("/tmp/injected").exists()


@pytest.mark.soak
def test_preempted_job_saves_requeues_itself_and_finishes(slurm, counter, tmp_path):
    run = tmp_path / "a run"
    job = counter(f"hydra.run.dir='{run}'", "steps=40", options=("--nodes=2",))
    slurm.wait_output(job, "rank 3 starts at 0")
    started = time.monotonic()
    urgent = slurm.sbatch("echo here", options=("--partition=urgent", "--nodes=2", "--exclusive"))
    slurm.wait(job, "PENDING", "RUNNING", restarts=1)
    assert time.monotonic() - started < 8  # the grace time is 10 s, and SIGKILL comes after it
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    output = slurm.output(job)
    saved = json.loads((run / "restarts.jsonl").read_text())
    assert saved["restart"] == 1 and 0 < saved["step"] < 40
    for rank in range(4):
        assert f"rank {rank} starts at 0\n" in output and f"rank {rank} starts at {saved['step']}\n" in output
        assert f"rank {rank} ends at 40 []" in output
    assert "SIGTERM" in output and not (run / "stopped.json").exists()


def test_cancelled_finished_and_failed_jobs_stay_ended(slurm, counter, tmp_path):
    cancelled = counter(f"hydra.run.dir={tmp_path}/cancelled", "steps=900", options=("--nodes=1",))
    slurm.wait_output(cancelled, "rank 0 starts")
    finished = counter(f"hydra.run.dir={tmp_path}/finished", "steps=1", options=("--nodes=1",))
    slurm.run("scancel", cancelled)
    failed = counter(f"hydra.run.dir={tmp_path}/failed", "steps=many", options=("--nodes=1",))
    for job, state in ((cancelled, "CANCELLED"), (finished, "COMPLETED"), (failed, "FAILED")):
        record = slurm.wait(job)
        assert (record["JobState"], record["Restarts"]) == (state, "0"), slurm.output(job)
    assert json.loads((tmp_path / "cancelled/stopped.json").read_text())["reason"] == "SIGTERM"
    # srun shows the highest status of its tasks: the mistake's own 1, or 143 of the one that was ended with it.
    assert slurm.show(failed)[0]["ExitCode"] in ("1:0", "143:0")
    time.sleep(1)
    assert slurm.squeue() == []


def test_bad_input_ends_the_job_before_it_starts(slurm, counter, tmp_path):
    quoted = "hydra.run.dir=${oc.env:HOME}/x"
    moving = counter(quoted, "steps=1")
    assert slurm.wait(moving)["ExitCode"] == "2:0"
    assert quoted in slurm.output(moving)
    grid = counter("-m", "steps=1,2")
    assert slurm.wait(grid)["ExitCode"] == "2:0"
    assert "hydra/launcher=slurm" in slurm.output(grid)


@pytest.mark.soak
def test_array_with_a_limit_and_one_requeued(slurm, tmp_path):
    """A task that requeues itself does not drag its siblings along, though one of them has the array's own id."""
    program = tmp_path / "again.py"
    program.write_text(
        "import os, time\nfrom launcher.distributed.slurm import job_name\n"
        "from launcher.distributed.slurm_commands import requeue\n"
        "again = int(os.environ.get('SLURM_RESTART_COUNT') or 0)\n"
        "print(os.environ['SLURM_JOB_ID'], time.time(), flush=True)\n"
        "time.sleep(1)\n"
        "print(time.time(), flush=True)\n"
        "if os.environ['SLURM_ARRAY_TASK_ID'] == '3' and not again: requeue(job_name(os.environ)); time.sleep(9)\n"
    )
    options = ("--array=0-3%2", "--open-mode=append", "--requeue")
    job = slurm.sbatch(f"{sys.executable} {program}", options=options, env={"PYTHONPATH": str(REPOSITORY)})
    records = slurm.wait_array(job)
    assert [(r["JobState"], r["Restarts"]) for r in records] == [("COMPLETED", "0")] * 3 + [("COMPLETED", "1")]
    assert records[3]["JobId"] == job  # the trap
    lines = [slurm.output(f"{job}_{i}").split() for i in range(4)]
    spans = [(float(w[1]), float(w[2])) for w in lines]
    for start, _ in spans:
        assert sum(a <= start < b for a, b in spans) <= 2


@pytest.mark.soak
def test_time_limit_sends_usr1_and_the_job_goes_on(slurm, counter, tmp_path):
    run = tmp_path / "run"
    options = ("--time=1", "--signal=USR1@50", "--nodes=1")
    job = counter(f"hydra.run.dir={run}", "steps=450", options=options)
    assert slurm.wait(job, timeout=150)["JobState"] == "COMPLETED", slurm.output(job)
    output = slurm.output(job)
    assert "['SIGUSR1']" in output and "SIGTERM" not in output and "rank 1 ends at 450 []" in output


@pytest.mark.soak
def test_time_limit_itself_is_no_end_either(slurm, counter, tmp_path):
    """Nobody was warned (a signal that comes too late): SIGTERM at the limit, and still back into the queue."""
    job = counter(f"hydra.run.dir={tmp_path}/run", "steps=1000", options=("--time=1", "--signal=CONT@60", "--nodes=1"))
    assert slurm.wait(job, timeout=240)["JobState"] == "COMPLETED", slurm.output(job)
    assert "'SIGTERM'" in slurm.output(job) and "rank 0 ends at 1000 []" in slurm.output(job)


@pytest.mark.soak
def test_a_job_that_never_saves_is_ended(slurm, counter, tmp_path):
    job = counter(f"hydra.run.dir={tmp_path}/run", "steps=600", "barren=1", options=("--nodes=1",), MAX_REQUEUES="1")
    for restart in range(2):
        slurm.wait(job, "RUNNING", restarts=restart)
        slurm.wait_output(job, f"start {restart + 1}: ")
        time.sleep(1)
        slurm.run("scontrol", "requeue", job)
        slurm.wait(job, "PENDING", "RUNNING", restarts=restart + 1)
    record = slurm.wait(job)
    assert (record["JobState"], record["Restarts"]) == ("FAILED", "2")
    assert "max_requeues is 1" in slurm.output(job)


@pytest.mark.soak
def test_killed_daemon_and_killed_node(counter, tmp_path):
    """A node without power takes the job back into the queue, and the job finishes on the other one."""
    with Cluster() as cluster:
        script = "echo start $SLURM_RESTART_COUNT on $SLURMD_NODENAME; srun sh -c 'echo begun; sleep 15'; echo end $?"
        options = ("--requeue", "--open-mode=append", "--nodes=1", "--nodelist=n1")
        job = cluster.sbatch(script, options=options)
        cluster.wait_output(job, "begun")  # a step that is just being launched would fail
        cluster.kill_node("n1", tasks=False)
        time.sleep(1)
        cluster.start_node("n1")
        assert cluster.wait(job)["JobState"] == "COMPLETED"  # the daemon came back in time
        job = cluster.sbatch(script, options=options[:3])
        cluster.wait_output(job, "begun")
        name = cluster.show(job)[0]["BatchHost"]
        cluster.kill_node(name)
        record = cluster.wait(job, timeout=150)
        assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "1"), cluster.output(job)
        assert record["BatchHost"] != name
