"""What SLURM tells a process of its job: by its variables alone, and on a real cluster."""

import random
import sys

import pytest
from processes import REPOSITORY
from slurm_cluster import found

from launcher.core.errors import ConfigError
from launcher.distributed.slurm import (
    cores_of_task,
    expand_counts,
    expand_hosts,
    interface_to,
    job_name,
    node_address,
    port,
    ranks,
    time_left,
)
from launcher.slurm.job import quote

PRINT_RANKS = """
import json, os, sys
from launcher.distributed.slurm import ranks
print("RANKS", json.dumps([ranks(os.environ), os.environ.get("CUDA_VISIBLE_DEVICES") or None]), flush=True)
"""


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


def test_job_names():
    assert job_name({}) is None
    assert job_name({"SLURM_JOB_ID": "7"}) == "7"
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_name(array) == "7_3"


def test_interface():
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None


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


def test_time_left(slurm, tmp_path):
    code = "import os; from launcher.distributed.slurm import time_left; print('LEFT', time_left(os.environ))"
    script = f"{sys.executable} -c {quote(code)}"
    environment = {"PYTHONPATH": str(REPOSITORY)}
    limited = slurm.sbatch(script, options=("--time=5",), env=environment)
    free = slurm.sbatch(script, env=environment)
    slurm.wait(limited)
    assert 290 <= found(slurm.output(limited), "LEFT")[0] <= 300
    slurm.wait(free)
    assert found(slurm.output(free), "LEFT")[0] > 300 * 86400  # without a limit SLURM counts down from a year
    assert time_left({}) is None
