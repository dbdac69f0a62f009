import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keeper import descendants
from slurm_cluster import Cluster, missing

from launcher.core.errors import ConfigError
from launcher.distributed.slurm import (
    cores_of_task,
    expand_counts,
    expand_hosts,
    interface_to,
    job_name,
    node_address,
    parse_duration,
    port,
    ranks,
    time_left,
)
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
PRINT_RANKS = """
import json, os, sys
from launcher.distributed.slurm import ranks
print("RANKS", json.dumps([ranks(os.environ), os.environ.get("CUDA_VISIBLE_DEVICES") or None]), flush=True)
"""
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


def found(output, word):
    return [json.loads(line.split(" ", 1)[1]) for line in output.splitlines() if line.startswith(f"{word} ")]


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


# launcher/slurm/job.py alone


def test_hosts_are_those_of_scontrol(slurm):
    lists = ["n[1-2,7]", "n1", "a[08-11],b", "a[1-3,07-09,010]", "a[1-2]b[3-4,6]", "r[0-1]-n[01-02],login"]
    dice = random.Random(3)
    for _ in range(20):
        first = dice.randrange(0, 90)
        width = dice.choice([0, 2, 4])
        ends = f"{first:0{width}d}-{first + dice.randrange(12):0{width}d}"
        lists.append(f"gpu[{ends},{100 + dice.randrange(50)}]x[{dice.randrange(5)}],m{dice.randrange(9)}")
    for hosts in lists:
        assert expand_hosts(hosts) == slurm.run("scontrol", "show", "hostnames", hosts).stdout.split(), hosts


def test_hosts_with_a_suffix_and_mistakes():
    assert expand_hosts("n[1-2].cluster.org") == ["n1.cluster.org", "n2.cluster.org"]
    assert expand_counts("2(x3),1,10(x2)") == [2, 2, 2, 1, 10, 10]
    for wrong in ("n[1-2", "n1-2]", "n[a-b]", "n[1-]", "n[]"):
        with pytest.raises(ValueError, match="host list"):
            expand_hosts(wrong)
    with pytest.raises(ValueError, match="counts"):
        expand_counts("2x3")


def task(**changes):
    """Variables of the third of five tasks, 2 + 2 + 1 on three nodes."""
    return {
        "SLURM_JOB_ID": "41",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "1",
        "SLURM_NTASKS": "5",
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_STEP_NODELIST": "n[07-09]",
        "SLURM_GTIDS": "2,3",
    } | changes


def without(*names):
    return {k: v for k, v in task().items() if k not in names}


def test_ranks_of_a_task():
    expected = {"RANK": "2", "WORLD_SIZE": "5", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
    asked = []
    got = ranks(task(), lambda name: asked.append(name) or "127.0.0.7")
    assert got == expected | {"MASTER_ADDR": "127.0.0.7", "MASTER_PORT": "20041", "GLOO_SOCKET_IFNAME": "lo"}
    assert asked == ["n07", "n07"]
    first = task(SLURM_PROCID="0", SLURM_NODEID="0", SLURM_GTIDS="0,1")
    assert "GLOO_SOCKET_IFNAME" in ranks(first, lambda name: asked.append(name) or "127.0.0.7")
    assert asked[2:] == ["n07", "n08"]  # the first node looks towards another one
    assert "GLOO_SOCKET_IFNAME" not in ranks(first | {"GLOO_SOCKET_IFNAME": "ib0"}, lambda name: "127.0.0.7")
    last = ranks(task(SLURM_PROCID="4", SLURM_NODEID="2", SLURM_GTIDS="4"), lambda name: name)
    assert (last["LOCAL_WORLD_SIZE"], last["MASTER_ADDR"]) == ("1", "n07")
    chosen = ranks(task(MASTER_ADDR="10.1.1.1", MASTER_PORT="1234"), lambda name: name)
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.1.1.1", "1234")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1"},
        without("SLURM_STEP_ID"),  # a batch script
        task(SLURM_STEP_ID="4294967290"),  # the interactive step of salloc
        task(RANK="0", WORLD_SIZE="2"),  # torchrun in a task
        task(SLURM_GTIDS="0"),  # a batch script submitted from a task
        task(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_STEP_TASKS_PER_NODE="1", SLURM_NODEID="0"),
    ],
)
def test_ranks_are_not_slurms_to_give(environment):
    assert ranks(environment, lambda name: name) is None


def test_what_is_left_over_in_a_shell_does_not_take_the_ranks_from_slurm():
    """Else each task would train alone."""
    for left in ({"LOCAL_RANK": "0"}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": ""}):
        given = ranks(task(**left), lambda name: name)
        assert given is not None and given["RANK"] == ranks(task(), lambda name: name)["RANK"]


def test_cores_of_a_task():
    bound = task(SLURM_CPUS_PER_TASK="6")
    assert cores_of_task(bound, 2) == 6
    assert cores_of_task(bound, 4) is None  # torchrun in a task: its processes share them
    assert cores_of_task(task(), 2) is None and cores_of_task({}, 1) is None


def test_contradicting_variables_are_refused():
    with pytest.raises(ConfigError, match="SLURM_PROCID=7 does not fit SLURM_STEP_NUM_TASKS=5"):
        ranks(task(SLURM_PROCID="7"), lambda name: name)


def test_ports_of_neighbours_differ():
    tried = [
        port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": str(restart)})
        for job in range(800_000, 800_245)
        for step in range(4)
        for restart in range(10)
    ]
    assert len(set(tried)) == len(tried) == 9800
    assert min(tried) >= 20_000 and max(tried) < 30_000
    assert port({"SLURM_JOB_ID": "1", "SLURM_STEP_RESV_PORTS": "12345-12347"}) == 12345


def test_durations():
    cases = {"30": 1800, "5:30": 330, "1:00:00": 3600, "2-12:00:00": 216000, "1-0": 86400, "0:07\n": 7}
    assert {text: parse_duration(text) for text in cases} == cases
    assert [parse_duration(text) for text in ("UNLIMITED", "INVALID", "NOT_SET", "")] == [None] * 4
    with pytest.raises(ValueError, match="no time"):
        parse_duration("soon")


def test_job_names():
    assert job_name({}) is None
    assert job_name({"SLURM_JOB_ID": "7"}) == "7"
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_name(array) == "7_3"


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
    line = quote(HOSTILE)
    assert "\n" not in line and "\r" not in line
    script = f"{sys.executable} -c {quote([DUMP])} {line}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert found(done.stdout, "ARGV") == [HOSTILE]
    with pytest.raises(ValueError, match="NUL"):
        quote(["a\0b"])


def test_interface():
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None


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


def test_two_nodes_of_two_tasks(slurm, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(PRINT_RANKS)
    script = f"srun {sys.executable} {program}\necho alone\n{sys.executable} {program}\n"
    script += f"srun --nodes=1 --ntasks=1 {sys.executable} {program}\n"
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
    job = slurm.sbatch(script, options=options, env={"PYTHONPATH": str(REPOSITORY)})
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
    inside, outside = slurm.output(job).split("alone\n")
    got = sorted(found(inside, "RANKS"), key=lambda row: int(row[0]["RANK"]))
    address, first = got[0][0]["MASTER_ADDR"], str(20_000 + int(job))
    assert [row[1] for row in got] == ["0,1"] * 4
    assert [row[0] for row in got] == [
        {
            "RANK": str(rank),
            "WORLD_SIZE": "4",
            "LOCAL_RANK": str(rank % 2),
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": str(rank // 2),
            "MASTER_ADDR": address,
            "MASTER_PORT": first,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        for rank in range(4)
    ]
    # The batch script itself has SLURM_PROCID=0 and SLURM_NTASKS=4, and is alone; so is a step of one task.
    assert found(outside, "RANKS") == [[None, "0,1"], [None, "0,1"]]


def test_address_where_names_do_not_resolve(slurm, monkeypatch):
    for name, value in slurm.environment.items():
        if name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, value)
    assert node_address("localhost") == "localhost"
    assert node_address("n2") in ("127.0.0.1", "n2")
    with pytest.raises(RuntimeError, match="n77"):
        node_address("n77")


def test_salloc_and_nested_sbatch_are_no_steps(slurm, tmp_path):
    program = tmp_path / "ranks.py"
    program.write_text(PRINT_RANKS)
    environment = {"PYTHONPATH": str(REPOSITORY)}
    command = f"{sys.executable} {program}"
    done = slurm.run("salloc", "-n2", "bash", "-c", command, env=environment)
    assert found(done.stdout, "RANKS") == [[None, None]]
    submit = f"[ $SLURM_PROCID = 1 ] || sbatch --wait --output={tmp_path}/nested.out --wrap '{command}'"
    slurm.run("srun", "--ntasks=2", "bash", "-c", submit, env=environment)
    assert found((tmp_path / "nested.out").read_text(), "RANKS") == [[None, None]]


def test_two_steps_and_two_jobs_at_once_have_ports_of_their_own(slurm, tmp_path):
    listen = tmp_path / "listen.py"
    listen.write_text(
        "import os, socket, time\nfrom launcher.distributed.slurm import ranks\nr = ranks(os.environ)\n"
        "s = socket.socket()\nif r['RANK'] == '0': s.bind(('', int(r['MASTER_PORT']))); s.listen()\n"
        "print('PORT', r['MASTER_PORT'], flush=True)\ntime.sleep(2)\n"
    )
    step = f"srun --exact --ntasks=2 --nodes=1 {sys.executable} {listen}"
    environment = {"PYTHONPATH": str(REPOSITORY)}
    options = ("--nodes=1", "--ntasks=4", "--nodelist=n1")
    jobs = [slurm.sbatch(f"{step} & {step} & wait", options=options, env=environment) for _ in range(2)]
    ports = []
    for job in jobs:
        assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.output(job)
        ports += found(slurm.output(job), "PORT")
    assert sorted(ports.count(p) for p in ports) == [2] * 8, ports


def test_hostile_overrides_reach_python_unharmed(slurm, tmp_path):
    """As arguments of a batch script, and written into one."""
    dump = tmp_path / "dump.py"
    dump.write_text(DUMP)
    by_argument = slurm.sbatch(f'srun {sys.executable} {dump} "$@"', *HOSTILE)
    in_script = slurm.sbatch(f"srun {sys.executable} {dump} {quote(HOSTILE)}")
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
        "import os, time\nfrom launcher.distributed.slurm import job_name\nfrom launcher.slurm.job import requeue\n"
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


def test_time_left(slurm, tmp_path):
    code = "import os; from launcher.distributed.slurm import time_left; print('LEFT', time_left(os.environ))"
    script = f"{sys.executable} -c {quote([code])}"
    environment = {"PYTHONPATH": str(REPOSITORY)}
    limited = slurm.sbatch(script, options=("--time=5",), env=environment)
    free = slurm.sbatch(script, env=environment)
    slurm.wait(limited)
    assert 290 <= found(slurm.output(limited), "LEFT")[0] <= 300
    slurm.wait(free)
    assert found(slurm.output(free), "LEFT")[0] > 300 * 86400  # without a limit SLURM counts down from a year
    assert time_left({}) is None


# The fixture alone


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("how", ["leave", "SIGKILL"])
def test_nothing_is_left_of_a_cluster(how, tmp_path):
    """Also where whoever started it is killed, and where a job has daemons of its own."""
    code = (
        "import os, sys\nfrom slurm_cluster import Cluster\n"
        "with Cluster() as c:\n"
        "    job = c.sbatch('setsid sleep 300 & srun -N2 sleep 300', options=('-N2',))\n"
        "    c._until('tasks', 20, lambda: len(c.processes()) >= 5)\n"
        "    print(c.directory, c._keeper.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    directory, keeper = owner.stdout.readline().split()
    below = descendants(int(keeper))
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in below}
    assert {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"} <= names
    if how == "leave":
        owner.stdin.close()
    else:
        owner.kill()
    owner.wait(20)
    end_by = time.monotonic() + 10
    while time.monotonic() < end_by and (any(map(alive, [*below, int(keeper)])) or Path(directory).exists()):
        time.sleep(0.05)
    assert [pid for pid in [*below, int(keeper)] if alive(pid)] == []
    assert not Path(directory).exists()


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
