"""check=true: what a run will need, beside what it then takes."""

import os
import re
import subprocess
import sys

import pytest
from processes import REPOSITORY, command, summary, train

from launcher import check
from launcher.batching.plan import plan_batch

NET = """
import torch
from launcher.models.mlp import MLP

class Reads(MLP):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs, [16], "relu", 0.0)
        self.scale = self.layers[1].weight.abs().max().item()

class Fails(MLP):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs, [16], "relu", 0.0)

    def forward(self, x):
        raise RuntimeError("no way forward")

class Wide(MLP):  # a gigabyte and more for each sample
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs, [16], "relu", 0.0)

    def forward(self, x):
        return super().forward(x) + torch.sin(x.flatten(1)[:, :1].expand(-1, 1 << 28)).square().mean()

class Huge(torch.nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(100_000, 100_000) for _ in range(40))
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(NET)
    return tmp_path


def tell(place, *words, status=0, **kwargs):
    run = command("train", ["check=true", "threads=1", "wandb.mode=disabled", *words], place, **kwargs).wait(90)
    assert run.status[0] == status, run.out() + run.err()
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == ["io", "own.py"]
    return run.out() if status != 2 else run.err()


def test_the_memory_that_is_free_is_asked_by_a_process_that_ends():
    import psutil

    free, silence = check.free_memory(True)
    assert silence == "" and free == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_device_that_does_not_answer_is_a_problem():
    free, silence = check.free_memory(False)  # torch has no driver to ask, or no CUDA at all
    assert free is None and re.match("RuntimeError|AssertionError", silence)


@pytest.mark.gpu
def test_no_context_is_left_in_the_process_that_checks(place):
    code = (
        f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r}); import torch; "
        "from launcher.distributed import gpus; "
        "from launcher.train import command; status = command(sys.argv[1:]); "
        "assert not torch.cuda.is_initialized(); "
        "assert f'pid {os.getpid()} ' not in str(gpus.computing(gpus.look() or [])); sys.exit(status)"
    )
    words = ["check=true", "wandb.mode=disabled"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "fine" in done.stdout, done.stdout + done.stderr


def megabytes(said, what):
    return float(re.search(rf"{what} ([\d.,]+)", said)[1].replace(",", ""))


def test_it_plans_measures_and_leaves_nothing_behind(place):
    words = ["optimizer=adam", "model.hidden=[700,300]", "check=3", "epochs=7", "ema_decay=0.9", "hydra.run.dir=run"]
    said = tell(place, *words)
    parameters = 64 * 700 + 700 + 700 * 300 + 300 + 300 * 10 + 10
    assert f"MLP, {parameters:,} parameters" in said
    assert str(plan_batch(1294, 64, 3, None)) in said and "147 updates, 7 epochs" in said
    weights = 4 * parameters / 2**20
    for what, expected in (("weights", 1), ("gradients", 1), ("optimizer", 2), ("moving average", 1)):
        assert megabytes(said, what) == pytest.approx(expected * weights, abs=0.06), said
    # The weights, two moments, and the model beside its average: four times the weights.
    assert megabytes(said, "4 checkpoints of") == pytest.approx(4 * weights, rel=0.02)
    assert re.search(r"updates/s in \d+ real ones of 22 samples on one", said) and "fine" in said
    assert "of 8 evaluations" in said
    assert megabytes(said, "the copy that a save writes") == pytest.approx(4 * weights, abs=0.1)


@pytest.mark.soak
def test_what_is_frozen_needs_no_gradient_and_no_state(place):
    said = tell(place, "optimizer=adam", "model.hidden=[700,300]", "freeze=['layers.1.*']", "hydra.run.dir=run")
    trained = 4 * (700 * 300 + 300 + 300 * 10 + 10) / 2**20
    assert megabytes(said, "gradients") == pytest.approx(trained, abs=0.06), said
    assert megabytes(said, "optimizer") == pytest.approx(2 * trained, abs=0.06), said


@pytest.mark.soak
def test_a_batch_that_does_not_fit_is_a_problem_and_what_would_fit_is_said(place):
    words = ["batch.global_size=1200", "model._target_=own.Wide", "hydra.run.dir=run"]
    said = tell(place, *words, status=1)
    found = re.search(r"PROBLEM +a device needs ([\d,]+) MB for 1200 samples at once.*batch.max_per_device=(\d+)", said)
    assert found and 0 < int(found[2]) < 1200, said
    assert f"\n{'':<11} {int(found[2]):,} samples at once would fit" in said


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_a_full_disk_and_one_that_nobody_writes_to(place):
    """In a mount namespace of its own: a file system of 4 MB, and the same made read-only."""
    words = "check=true threads=1 wandb.mode=disabled optimizer=adam model.hidden=[700,300] hydra.run.dir=small/run"
    program = f"{sys.executable} {REPOSITORY / 'launcher/train.py'} {words}"
    (place / "small").mkdir()
    script = f"""mount -t tmpfs -o size=4m none small && {program}
        echo $?
        mount -o remount,ro small && {program}
        echo $?"""
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=place, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert re.search(r"PROBLEM +.*small: \d+ MB for checkpoints, and [34] are free", done.stdout), done.stdout
    first, second = re.findall(r"^\d$", done.stdout, re.MULTILINE)
    assert (first, second) == ("1", "2"), done.stdout + done.stderr
    assert "hydra.run.dir" in done.stderr and "no permission to write" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.soak  # a comparison of times
def test_the_time_it_states_is_that_of_the_run(place):
    words = ["model.hidden=[2000,2000]", "max_steps=60", "log_every=1", "eval_every=null", "hydra.run.dir=run"]
    said = tell(place, *words)
    stated = float(re.search(r"end, ([\d.]+) s of training", said)[1])
    train([*words, "threads=1"], place).ok()
    assert 0.3 < stated / summary(place / "run")["training_seconds"] < 3


@pytest.mark.soak
def test_two_processes_speak_with_one_voice_also_of_a_model_that_needs_values(place):
    run = command("train", ["check=true", "threads=1", "model._target_=own.Reads"], place, world=2).ok(90)
    assert "Reads, " in run.out() and "= 2 devices" in run.out() and run.out(1) == ""


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        ("Fails", ["a step fails", "no way forward"]),
        ("Huge", ["for the model's state alone", "400,004,000,000 parameters"]),
    ],
)
def test_what_could_not_go_through_is_a_problem(net, expected, place):
    said = tell(place, f"model._target_=own.{net}", status=1)
    for text in ("PROBLEM", *expected):
        assert text in said, said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check=100"], ["batch.global_size=64", "100 devices"]),
        (["check=often"], ["check=often", "number of devices"]),
        (["loss=mse"], ["loss", "classification"]),
        (["scheduler.warmup=99epochs"], ["warmup"]),
    ],
)
def test_wrong_input_is_refused_as_the_run_would(words, expected, place):
    said = tell(place, *words, status=2)
    for text in expected:
        assert text in said, said


def test_a_sweep_is_not_checked(place):
    words = ["-m", "optimizer=sgd,adam", "check=true", "hydra.sweep.dir=grid"]
    program = [sys.executable, str(REPOSITORY / "launcher/train.py")]
    done = subprocess.run([*program, *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 2 and "leave out -m" in done.stderr, done.stderr


@pytest.mark.gpu
def test_on_a_gpu(place):
    said = tell(place, "model.hidden=[2048]", "hydra.run.dir=run")
    assert "on one GPU" in said and "MB at most in the steps" in said and "fine" in said
