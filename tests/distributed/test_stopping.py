"""Stopping together: signals, vanished parents, time limits, and ranks that die, raise or hang."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from kill_loop import OWN, RUN, newest, place, same_bits
from processes import REPOSITORY, free_port, rows, summary, train

from launcher.distributed import process_group

LONG = [*(w for w in RUN if not w.startswith(("epochs", "eval_every", "checkpoint.every"))), "epochs=4000",
        "eval_every=500", "checkpoint.every=500"]  # fmt: skip

FAULT = (
    OWN
    + """
import os, time
class Net(torch.nn.Module):
    '''Does a fault at its 40th training batch on rank FAULT_RANK.'''
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer = torch.nn.Linear(5, num_outputs)
        self.calls = 0
    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls == 40 and os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK"):
            fault = os.environ["FAULT"]
            if fault == "raise":
                raise ArithmeticError("a fault of its own")
            if fault == "sleep":
                time.sleep(1000)
            os.kill(os.getpid(), {"kill": 9, "stop": 19}[fault])
        return self.layer(x)
"""
)
FAULTY = [*(w for w in LONG if not w.startswith("model.")), "model._target_=own.Net"]


def started(run, directory, lines=3, timeout=60):
    """Wait until the run has written some rows."""
    deadline = time.monotonic() + timeout
    record = directory / "run/metrics.jsonl"
    while not record.exists() or record.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline, run.err()
        assert run.processes[0].exitcode is None, run.err()
        time.sleep(0.01)


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_to_one_rank_stops_all_at_one_step(seed, tmp_path):
    _signal_one(seed, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 12))
def test_more_signals_to_one_rank(seed, tmp_path):
    _signal_one(seed, tmp_path)


def _signal_one(seed, directory):
    choose = random.Random(seed)
    world = choose.choice([1, 2, 3])
    run = train(LONG, place(directory), world)
    started(run, directory, choose.randrange(1, 30))
    number = choose.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    asked = time.monotonic()
    run.signal(choose.randrange(world), number)
    run.ok(30)
    assert time.monotonic() - asked < 15
    stopped = json.loads((directory / "run/stopped.json").read_text())
    assert stopped["step"] == int(newest(directory).name[5:]) == summary(directory / "run")["step"]
    assert rows(directory / "run")[-1]["step"] <= stopped["step"] and stopped["reason"] == number.name
    assert "everything is saved" in run.out()


def test_a_signal_to_all_ranks_at_once_and_its_echo(tmp_path):
    run = train(LONG, place(tmp_path), 2)
    started(run, tmp_path)
    for _ in range(2):  # a launcher and a shell both pass it on
        for rank in (0, 1):
            with contextlib.suppress(ProcessLookupError):  # it has stopped already
                run.signal(rank, signal.SIGINT)
        time.sleep(0.1)
    run.ok(30)
    assert "SIGINT" in json.loads((tmp_path / "run/stopped.json").read_text())["reason"]


def test_a_second_signal_ends_at_once(tmp_path):
    """Evaluation sleeps: the first signal waits for it, the second, a second later, does not."""
    code = OWN + (
        "import time\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__(5, num_outputs)\n"
        "    def forward(self, x):\n"
        "        if not self.training and len(x) > 1:\n"  # one sample is tried before the run
        "            time.sleep(100)\n"
        "        return super().forward(x)\n"
    )
    words = [w for w in FAULTY if "eval_every" not in w]
    run = train([*words, "eval_every=9", "log_every=1"], place(tmp_path, code))
    started(run, tmp_path, 8)
    time.sleep(1)
    run.signal(0, signal.SIGTERM)
    time.sleep(1)
    assert run.processes[0].exitcode is None
    run.signal(0, signal.SIGTERM)
    run.wait(5)
    assert run.status == [143] and "ending at once" in run.err()


def test_max_time_stops_early_enough(tmp_path):
    run = train([*LONG, "max_time=8"], place(tmp_path))
    run.ok(30)
    assert json.loads((tmp_path / "run/stopped.json").read_text())["reason"] == "max_time"
    assert time.monotonic() - run.started < 10


def test_a_vanished_launcher_counts_as_a_request_to_stop(tmp_path):
    """`accelerate launch` of one process, killed: nobody is left who would pass on a signal."""
    place(tmp_path)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    launcher = subprocess.Popen(
        [*words, str(REPOSITORY / "launcher/train.py"), *LONG, "wandb.mode=disabled"],
        cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/metrics.jsonl").exists() or not (tmp_path / "run/metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    while not (tmp_path / "run/stopped.json").exists():
        assert time.monotonic() < deadline, "the trainer goes on without its launcher"
        time.sleep(0.05)
    assert "vanished" in json.loads((tmp_path / "run/stopped.json").read_text())["reason"]


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("/env/bin/python /env/bin/torchrun --nproc_per_node 2 launcher/train.py", True),
        ("python -m torch.distributed.run --nnodes 2 launcher/train.py", True),
        ("python -u -m torch.distributed.launch launcher/train.py", True),
        ("/env/bin/python3.12 /env/bin/accelerate launch launcher/train.py", True),
        ("/env/bin/python /env/bin/accelerate-launch launcher/train.py", True),
        ("python -m accelerate.commands.launch launcher/train.py", True),
        *((words, False) for words in (
            "-bash", "sh -c python launcher/train.py", "make train", "tmux new-session -d", "SCREEN -S train",
            "/usr/sbin/cron -f", "sshd: me@notty", "/usr/lib/systemd/systemd --user", "slurmstepd: [12.0]", "",
            "python sweep_of_mine.py", "python -m pytest", "timeout 1h python launcher/train.py",
            "bash /home/me/torchrun.sh", "python train.py --with accelerate",
        )),
    ],
)  # fmt: skip
def test_which_parents_are_launchers(command, is_one):
    assert process_group.is_launcher(command.split()) == is_one


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", ["kill", "raise"])
def test_a_rank_that_dies_ends_the_others(fault, victim, tmp_path):
    run = train(FAULTY, place(tmp_path, FAULT), 3, {"FAULT": fault, "FAULT_RANK": str(victim)})
    begun = time.monotonic()
    run.wait(60)
    assert time.monotonic() - begun < 45
    others = [rank for rank in range(3) if rank != victim]
    assert all(run.status[rank] == 1 for rank in others)
    for rank in others:
        assert f"rank {victim}" in run.err(rank), run.err(rank)
        assert "Traceback" not in run.err(rank), "an echo, not the cause"
    if fault == "raise":
        assert run.status[victim] == 1
        assert "ArithmeticError: a fault of its own" in run.err(victim) and f"rank {victim} failed" in run.err(victim)
        assert "ArithmeticError" in run.err(others[0])
    assert not (tmp_path / "run/stopped.json").exists()


@pytest.mark.parametrize("fault", ["stop", pytest.param("sleep", marks=pytest.mark.soak)])
def test_a_rank_that_hangs_is_named_and_ended(fault, tmp_path):
    words = [*FAULTY, "timeout=6"]
    run = train(words, place(tmp_path, FAULT), 3, {"FAULT": fault, "FAULT_RANK": "1"})
    run.wait(6 + 45 + 20)
    assert run.status[0] == run.status[2] == 1 and run.status[1] in (1, -9)
    assert "rank 1" in run.err(0) + run.err(2)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.soak)])
def test_a_signal_to_torchrun(number, tmp_path):
    """SIGTERM reaches the ranks through the agent; SIGUSR1 too, where torchrun is told so, else it kills the agent."""
    place(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [*torchrun, str(REPOSITORY / "launcher/train.py"), *LONG, "wandb.mode=disabled"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    record = tmp_path / "run/metrics.jsonl"
    while not record.exists() or record.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    while not (tmp_path / "run/stopped.json").exists():
        assert time.monotonic() < deadline + 30, "the ranks were orphaned and did not stop"
        time.sleep(0.05)
    assert summary(tmp_path / "run")["status"] == "stopped"


GROUPS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--max_restarts", "2"],
}


@pytest.mark.soak
@pytest.mark.parametrize("launched", ["torchrun", "accelerate"])
def test_a_rank_killed_under_a_launcher_is_restarted_into_the_same_directory(launched, tmp_path):
    """max_restarts: the group comes back by itself, resumes, and ends with the bits of an undisturbed run."""
    words = [*(w for w in RUN if not w.startswith("hydra.run.dir")), "wandb.mode=disabled"]
    calm = place(tmp_path / "calm")
    train([*words, "hydra.run.dir=run"], calm, 2).ok()
    killed = place(tmp_path / "killed")
    # The model kills its rank once, in the middle: the mark on the disk says that it has been done.
    (killed / "own.py").write_text(
        OWN + "import os\nfrom launcher.models.mlp import MLP\nclass Net(MLP):\n"
        "    def forward(self, x):\n"
        "        self.calls = getattr(self, 'calls', 0) + self.training\n"
        "        if self.calls == 100 and os.environ['RANK'] == '1' and not os.path.exists('killed'):\n"
        "            open('killed', 'w').close()\n            os.kill(os.getpid(), 9)\n"
        "        return super().forward(x)\n"
    )
    done = subprocess.run(
        [sys.executable, *GROUPS[launched], str(REPOSITORY / "launcher/train.py"), *words, "model._target_=own.Net"],
        cwd=killed, capture_output=True, text=True, timeout=120, env=os.environ | {"ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (killed / "killed").exists()
    (made,) = killed.glob("outputs/*/*")
    made.rename(killed / "run")
    same_bits(calm, killed)


SLOW = (
    OWN
    + """
import os, time
class Net(torch.nn.Linear):
    def __init__(self, num_outputs):
        super().__init__(5, num_outputs)
    def forward(self, x):
        time.sleep(0 if os.path.exists("fast") else 0.05)
        return super().forward(x)
"""
)


@pytest.mark.soak
def test_a_machine_may_leave_and_another_join(tmp_path):
    """Two agents of one process each; one dies with its process, a third comes: 2, 1, 2 ranks, the same batches."""
    words = [*(w for w in FAULTY if not w.startswith(("epochs", "eval_every", "checkpoint", "hydra.run.dir"))),
             "epochs=100", "eval_every=50", "checkpoint.every=10"]  # fmt: skip
    calm, moved = place(tmp_path / "calm", SLOW), place(tmp_path / "moved", SLOW)
    (calm / "fast").touch()
    train([*words, "hydra.run.dir=run"], calm).ok()
    endpoint = f"127.0.0.1:{free_port()}"

    def join(host):
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=3",
             "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=job",
             f"--rdzv-conf=is_host={host},last_call_timeout=3", str(REPOSITORY / "launcher/train.py"), *words,
             "wandb.mode=disabled"],
            cwd=moved, env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def steps_beyond(step, timeout):
        deadline = time.monotonic() + timeout
        while True:
            found = [json.loads(line) for path in moved.glob("outputs/*/*/metrics.jsonl")
                     for line in path.read_bytes().splitlines()[-2:-1]]  # fmt: skip
            if found and found[0]["step"] > step:
                return found[0]["step"]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    agents = [join(1), join(0)]
    try:
        step = steps_beyond(12, 60)
        children = subprocess.run(["pgrep", "-P", str(agents[1].pid)], capture_output=True, text=True).stdout.split()
        for pid in [agents[1].pid, *map(int, children)]:
            os.kill(pid, signal.SIGKILL)
        step = steps_beyond(step + 12, 90)
        agents.append(join(0))
        (made,) = moved.glob("outputs/*/*")
        deadline = time.monotonic() + 60
        while "= 1 device" not in (log := (made / "train.log").read_text()) or "2 devices" not in log.split("1 dev")[1]:
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        (moved / "fast").touch()
        assert agents[0].wait(60) == agents[2].wait(60) == 0
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
            agent.wait(60)
    assert (summary(made)["status"], summary(made)["world_size"]) == ("finished", 2)
    for row, expected in zip(rows(made), rows(calm / "run"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)


# One training sample becomes NaN when it is augmented: in the data itself it would be found before the run.
NAN = OWN.replace("return raw + 0.1 * (uniforms - 0.5)", "return torch.where(raw > 50, torch.nan, raw)").replace(
    "return TensorSplit(torch.randn(n, 5, generator=g) + y[:, None], y, augment=shake, draws=5)",
    "x = torch.randn(n, 5, generator=g) + y[:, None]\n"
    "        if n == 60:\n            x[17] = 99\n"
    "        return TensorSplit(x, y, augment=shake, draws=5)",
)


@pytest.mark.parametrize("world", [1, 2])
def test_a_poisoned_batch_stops_the_run_and_is_never_saved(world, tmp_path):
    run = train([*RUN, "checkpoint.every=1"], place(tmp_path, NAN), world).wait()
    assert run.status == [1] * world
    message = run.err(0)
    assert "the inputs of update" in message and "NaN" in message and "action=rollback" in message and "17" in message
    for path in (tmp_path / "run/checkpoints").glob("step_*"):
        state = torch.load(path / "state.pt", weights_only=True)
        assert all(t.isfinite().all() for t in state["model"].values())


@pytest.mark.parametrize("world", [1, 2])
def test_a_poisoned_batch_is_left_out_by_choice(world, tmp_path):
    """Each epoch holds the bad sample once: 3 epochs, 3 rollbacks, 3 skipped batches, a finite end."""
    words = [*RUN, "epochs=3", "checkpoint.every=2", "divergence.action=rollback", "divergence.max_rollbacks=3"]
    train(words, place(tmp_path, NAN), world).ok()
    found = json.loads((tmp_path / "run/rollbacks.json").read_text())
    assert found["count"] == 3 and len(found["skipped"]) == 3
    assert [step // 5 for step in found["skipped"]] == [0, 1, 2]
    assert summary(tmp_path / "run")["status"] == "finished"
    timings = [json.loads(line) for line in (tmp_path / "run/timings.jsonl").read_text().splitlines()]
    assert all(row["steps_per_second"] > 0 for row in timings), "counted from where it went back to"
    assert sum(summary(tmp_path / "run")["time_shares"].values()) == pytest.approx(1, abs=0.01)
    assert all(0 < row.get("train/loss", 1) < 10 for row in rows(tmp_path / "run"))
    assert [row["step"] for row in rows(tmp_path / "run")] == sorted({row["step"] for row in rows(tmp_path / "run")})
    again = tmp_path / "again"
    run = train([*words[:-1], "divergence.max_rollbacks=2"], place(again, NAN), world).wait()
    assert run.status == [1] * world and "allow more than divergence.max_rollbacks=2 batches" in run.err(0)


def test_what_diverges_before_the_first_save_goes_back_to_the_start(tmp_path):
    """Every batch has the bad sample, and none of them is trained on; nor is the norm of another one shown for them."""
    words = [*RUN, "epochs=3", "batch.global_size=60", "checkpoint.every=null", "log_every=1", "scheduler.warmup=0"]
    train([*words, "divergence.action=rollback"], place(tmp_path, NAN)).ok()
    found = json.loads((tmp_path / "run/rollbacks.json").read_text())
    assert found["skipped"] == [0, 1, 2]
    assert not any({"train/loss", "train/grad_norm"} & row.keys() for row in rows(tmp_path / "run"))


@pytest.mark.soak
def test_ranks_do_not_wait_for_pictures_and_uploads(tmp_path):
    """Rank 0 may take longer for them than `timeout`, in which a rank has to come to a meeting."""
    slow = (
        "import time\nfrom launcher.run.reporter import Reporter\nshow = Reporter.show\n"
        "def late(*arguments):\n    time.sleep(12)\n    show(*arguments)\nReporter.show = late\n"
    )
    run = train([*RUN, "timeout=4"], place(tmp_path, OWN + slow), 2, pictures=True).ok()
    assert "finished  " in run.out() and (tmp_path / "run/report.html").exists()


def test_the_checkpoint_that_is_being_written_is_not_lost(tmp_path):
    code = (
        "import pathlib, threading, time\nfrom launcher.distributed import stopping\n"
        "def write():\n    time.sleep(1)\n    pathlib.Path('saved').touch()\n"
        "threading.Thread(target=write, name='checkpoint').start()\nstopping.leave(3, saving={})\n"
    )
    for seconds, there in ((0, False), (60, True)):
        done = subprocess.run([sys.executable, "-c", code.format(seconds)], cwd=tmp_path, env=os.environ | {
            "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
        assert done.returncode == 3 and (tmp_path / "saved").exists() is there


@pytest.mark.soak
def test_what_goes_wrong_in_unloading_is_no_failure(tmp_path):
    """Seen: "terminate called without an active exception" of a rank whose run had finished."""
    place(
        tmp_path,
        "import os\n\nclass Last:\n    def __del__(self, abort=os.abort):\n        abort()\n\nlast = Last()\n" + OWN,
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master-port", str(free_port())]
    words += [str(REPOSITORY / "launcher/train.py"), *RUN, "device=cpu", "wandb.mode=disabled"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and summary(tmp_path / "run")["status"] == "finished", done.stderr
