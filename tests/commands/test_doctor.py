"""launcher doctor: what is wrong is said in words, and in bounded time."""

import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest
from processes import REPOSITORY, start
from slurm_cluster import SEARCH

from launcher.commands import doctor
from launcher.distributed.process_group import Ranks
from launcher.run.run_directory import is_locked

DOCTOR = str(REPOSITORY / "launcher/__main__.py")


def examine(*argv):
    from launcher.commands import doctor

    doctor.VISIBLE = 1.0
    sys.exit(doctor.command([*argv, "--device=cpu"]))


def examine_in_a_place_of_its_own(*argv):
    place = Path(f"place{os.environ['RANK']}")
    place.mkdir()
    os.chdir(place)
    examine(*argv)


def examine_with_a_rank_that_hangs(*argv):
    from launcher.commands import doctor

    if os.environ["RANK"] == "1":
        doctor.all_reduce = lambda *_: time.sleep(100)
    examine(*argv)


def test_three_ranks_are_fine_and_nothing_is_left(tmp_path):
    run = start(examine, [str(tmp_path / "new/outputs")], tmp_path / "io", 3).ok()
    said = run.out()
    assert re.search(r"ranks +3 on 1 node", said) and said.endswith("fine\n")
    assert re.search(r"all-reduce +[\d.]+ ms for a number, 16 MB in [\d.]+ ms .*gloo", said)
    assert run.out(1) == run.out(2) == "" and not (tmp_path / "new").exists()


def test_a_gpu_that_is_hidden_has_not_been_given(monkeypatch):
    for given, count in (("-1", 0), ("", 0), ("NoDevFiles", 0), ("97,98", 2)):  # of which torch sees none anywhere
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert doctor.look_here(Ranks(0, 1, 0, 1), "auto")["given_gpus"] == count


def test_missing_ranks_are_named_in_bounded_time(tmp_path):
    """Rank 0 without rank 1, and rank 1 without rank 0."""
    started = time.monotonic()
    for rank, said in (("0", "1 of 2 ranks did not come within 1 s: 1."), ("1", "does not reach rank 0 at 127.0.0.1:")):
        environment = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(probe.getsockname()[1])
        run = start(examine, ["--timeout=1"], tmp_path / rank, 1, environment).wait(30)
        assert run.status == [1] and said in run.err() and "Traceback" not in run.err(), run.err()
    assert time.monotonic() - started < 20


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        own = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run = start(examine, ["--timeout=2"], tmp_path, 1, own).wait(30)
    assert run.status == [1] and f"cannot listen on port {port}" in run.err(), run.err()


def test_a_rank_that_hangs_ends_all(tmp_path):
    started = time.monotonic()
    run = start(examine_with_a_rank_that_hangs, ["--timeout=2"], tmp_path, 2).wait(30)
    assert time.monotonic() - started < 15 and 0 not in run.status
    assert "the all-reduce did not end within 2 s" in run.err(1), run.err(1)


def test_a_directory_that_is_not_shared_or_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start(examine_in_a_place_of_its_own, ["outputs"], tmp_path / "io", 2).wait(30)
    assert run.status == [1, 0] and "not the same file system" in run.out(), run.out() + run.err()
    (tmp_path / "file").touch()
    run = start(examine, [str(tmp_path / "file/outputs")], tmp_path / "io2", 2).wait(30)
    assert run.status == [1, 0] and "cannot write in" in run.out() and "Not a directory" in run.out()


def test_a_lock_is_noticed(tmp_path):
    import fcntl

    with open(tmp_path / "file", "w") as file:
        assert not is_locked(tmp_path / "file")
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_locked(tmp_path / "file")
    one = {"host": "n2", "rank": 1, "trouble": None, "unseen": [], "locked": False}
    (said,) = doctor.directory_problems(tmp_path, [{**one, "host": "n1", "rank": 0, "locked": True}, one, one])
    assert "n2 is not kept out by a lock (flock) of n1" in said


def fact(rank, **changes):
    own = {"name": "H200", "id": str(rank)}
    versions = {"python": "3.11", "torch": "2.9"}
    return {"rank": rank, "host": "n1", "local_world_size": 2, "gpu": own, "gpus": 2, "given_gpus": 2,
            "cores": [rank], "import_seconds": 1.0, "versions": versions} | changes  # fmt: skip


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({}, None),
        ({"gpu": {"name": "H200", "id": "0"}}, "ranks 0, 1 share a GPU of n1"),
        ({"gpu": None, "gpus": 0, "host": "n2"}, "n2: 2 GPUs were given, and torch sees none"),
        ({"gpu": None, "gpus": 1}, "n1: 2 ranks and 1 GPUs"),
        ({"gpus": 1}, None),  # --gpus-per-task=1: each sees its own alone
        ({"cores": [0]}, "2 ranks are bound to core 0 alone"),
        ({"versions": {"python": "3.11", "torch": "2.8"}}, "torch differs: 2.9 on ranks 0; 2.8 on ranks 1"),
    ],
)
def test_problems_in_words(second, said):
    found = doctor.find_problems([fact(0), fact(1, **second)])
    assert found == [] if said is None else len(found) == 1 and said in found[0]


def test_clocks():
    """Two nodes, the second 3 s ahead; every look takes some milliseconds."""
    rounds = [[("n1", 100.0), ("n2", 103.02)], [("n1", 200.0), ("n2", 203.004)], [("n1", 300.0), ("n2", 303.5)]]
    skews = dict(doctor.least_skews(rounds))
    assert skews["n1"] == 0 and skews["n2"] == pytest.approx(3.004)


def test_short_nodes_of_a_step():
    step = {"SLURM_STEP_NODELIST": "n[1-3]", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}
    assert doctor._short_of({"n1": 2, "n3": 1}, step) == ", on n2 (2), n3 (1)"
    assert doctor._short_of({}, {}) == ""


def test_alone(tmp_path, capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert doctor.command([str(tmp_path), "--device=cpu"]) == 0
    assert "1 on 1 node" in capsys.readouterr().out
    assert doctor.clock_skews(Ranks(0, 1, 0, 1))[0][1] == 0


@pytest.mark.soak
@pytest.mark.parametrize("how", ["srun", "accelerate"])
def test_on_two_nodes(slurm, how, tmp_path):
    """With GPUs that are pretended, which it finds out; and on the CPUs, where all is well."""
    path = os.pathsep.join([os.path.dirname(sys.executable), SEARCH])
    environment = {"PATH": path, "ACCELERATE_USE_CPU": "1"}
    program = ["python", "-m", "launcher", "doctor", str(tmp_path / "outputs")]
    if how == "accelerate":
        text = (
            "accelerate launch --multi_gpu --num_processes 4 --num_machines 2 --machine_rank $SLURM_NODEID "
            "--main_process_ip 127.0.0.1 --main_process_port $((20000 + SLURM_JOB_ID)) "
        )
        program = ["bash", "-c", f"{text} {' '.join(program[1:])} $0"]
    options = ["--nodes=2", f"--ntasks-per-node={2 if how == 'srun' else 1}", "--gpus-per-node=2"]
    done = slurm.run("srun", *options, *program, "--device=cpu", env=environment, timeout=90)
    assert "ranks       4 on 2 nodes (n1: 2, n2: 2)" in done.stdout and "fine" in done.stdout, done.stdout + done.stderr
    if how == "srun":
        done = slurm.run("srun", *options, *program, env=environment, timeout=90, check=False)
        assert done.returncode == 1 and "n2: 2 GPUs were given, and torch sees none" in done.stdout, done.stdout
