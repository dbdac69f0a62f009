"""Whole runs of the real program, on 1, 2 and 3 processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import REPOSITORY, free_port, own, rows, summary, train
from safetensors.torch import load_file

pytestmark = pytest.mark.versions

# 97 samples to evaluate: no number of ranks but 1 and 97 divides them. Its model notes which samples it is shown.
OWN = """
import os
import torch
from launcher.data import Data, TensorSplit

def load(n, classes):
    g = torch.Generator().manual_seed(0)
    def part(n, first):
        y = torch.arange(n) % classes
        x = torch.randn(n, 5, generator=g) + y[:, None]
        return TensorSplit(torch.cat([x, torch.arange(first, first + n)[:, None].float()], 1), y)
    return Data("own", "classification", (6,), classes, part(n, 0), part(97, 1000), part(97, 2000))

class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes, width=8):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(in_features - 1, width), torch.nn.ReLU(), torch.nn.Linear(width, num_classes))
        self.seen = open(f"seen.{os.environ.get('RANK', 0)}", "a") if "NOTE" in os.environ else None
    def forward(self, x):
        if self.seen is not None:
            print("train" if self.training else "eval", *x[:, -1].int().tolist(), file=self.seen, flush=True)
        return self.layers(x[:, :-1])
    def __deepcopy__(self, memo):
        raise TypeError("a file cannot be copied")
"""
OWN_RUN = [
    "data._target_=own.load", "+data.n=53", "+data.classes=3", "model._target_=own.Net", "batch.global_size=10",
    "epochs=3", "log_every=1", "threads=1", "hydra.run.dir=run", "optimizer.lr=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def own_runs(tmp_path_factory):
    """The same run on 1, 2 and 3 ranks, whose ranks start seconds apart."""
    directories = {}
    for world in (1, 2, 3):
        directories[world] = tmp_path_factory.mktemp(f"world{world}")
        (directories[world] / "own.py").write_text(OWN)
        delays = (0, 3, 1)[:world]
        train(OWN_RUN, directories[world], world, {"NOTE": "1"}, delays, pictures=True).ok()
    return directories


@pytest.mark.parametrize("world", [1, 2, 3])
def test_one_directory_one_log_one_voice(own_runs, world):
    directory = own_runs[world]
    assert [path.name for path in directory.iterdir() if path.is_dir() and path.name not in ("io", "__pycache__")] == [
        "run"
    ]
    assert (directory / "run/train.log").read_text().count("batch      ") == 1
    out = (directory / "io/out.0").read_text()
    assert "test/accuracy" in out and "\x1b" not in out
    for rank in range(1, world):
        assert (directory / f"io/out.{rank}").read_text() == ""
    for name in (".hydra/config.yaml", ".hydra/overrides.yaml", "timings.jsonl", "curves.png", "report.html"):
        assert (directory / "run" / name).stat().st_size > 0


def seen(directory, world, mode):
    """Sample numbers that the model was shown, per rank and call, after those that are tried before the run."""
    tried = {"train": 1, "eval": 2}[mode]
    calls = []
    for rank in range(world):
        lines = [line.split() for line in (directory / f"seen.{rank}").read_text().splitlines()]
        calls.append([[int(number) for number in numbers] for kind, *numbers in lines if kind == mode][tried:])
    return calls


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_is_evaluated_once(own_runs, world):
    shown = sorted(number for calls in seen(own_runs[world], world, "eval") for call in calls for number in call)
    assert shown == sorted(list(range(1000, 1097)) * 3 + list(range(2000, 2097)))
    assert json.loads((own_runs[world] / "run/evaluation.json").read_text())["samples"] == 97


def test_the_global_batches_are_the_same_on_any_number_of_ranks(own_runs):
    batches = {}
    for world in (1, 2, 3):
        calls = seen(own_runs[world], world, "train")
        skip = 0 if world == 1 else 2  # the warm-up of DDP, which leaves no trace in the run
        batches[world] = [sorted(sum(together, [])) for together in zip(*(c[skip:] for c in calls), strict=True)]
    assert len(batches[1]) == 18 and sorted(sum(batches[1][:6], [])) == list(range(53))
    assert batches[1] == batches[2] == batches[3]


def test_metrics_and_learning_rates_are_the_same_on_any_number_of_ranks(own_runs):
    one, two, three = (rows(own_runs[world] / "run") for world in (1, 2, 3))
    assert [row["step"] for row in one] == list(range(1, 19))
    assert [row["lr"] for row in one] == [row["lr"] for row in two] == [row["lr"] for row in three]
    for other in (two, three):
        for row, row_1 in zip(other, one, strict=True):
            assert row == pytest.approx(row_1, rel=1e-4)
    for world in (1, 2, 3):
        found = summary(own_runs[world] / "run")
        assert (found["status"], found["step"], found["world_size"]) == ("finished", 18, world)
        assert (found["global_batch_size"], found["samples_seen"]) == (10, 159)
        assert found["final"]["test/accuracy"] == summary(own_runs[1] / "run")["final"]["test/accuracy"]
        assert {"git_commit", "versions", "samples_per_second", "peak_memory_mb", "best"} <= found.keys()


def test_weights_alone_are_enough_for_inference(own_runs):
    module = own(own_runs[1])
    weights = load_file(own_runs[1] / "run/checkpoints/step_00000018/model.safetensors")
    net = module.Net(6, 3)
    net.load_state_dict(weights)
    part = module.load(53, 3).test
    accuracy = (net(part.inputs).argmax(1) == part.targets).float().mean().item()
    assert accuracy == pytest.approx(summary(own_runs[1] / "run")["final"]["test/accuracy"])
    assert accuracy > 0.5


def test_evaluate_measures_a_finished_run_again(own_runs):
    for world in (1, 2):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        words = (
            [sys.executable] if world == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        )
        words += [] if world == 1 else ["--master-port", str(free_port())]
        done = subprocess.run(
            [*words, "-m", "launcher", "evaluate", "run_dir=run"],
            cwd=own_runs[2], env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads((own_runs[2] / "run/evaluation_test.json").read_text())
        for name, value in found["metrics"].items():
            assert value == pytest.approx(summary(own_runs[2] / "run")["final"][f"test/{name}"], rel=1e-6)


LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": ["accelerate", "launch"],
    "torchrun 2": ["torchrun", "--nproc_per_node", "2"],
    "accelerate 2": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"],
}
FEW = [how if how != "accelerate" else pytest.param(how, marks=pytest.mark.soak) for how in LAUNCHERS]


@pytest.mark.parametrize("how", FEW)
def test_three_ways_to_launch_give_the_same_run(how, tmp_path):
    world = 2 if how.endswith("2") else 1
    words = list(LAUNCHERS[how])
    if world == 2:
        words += ["--main_process_port" if "accelerate" in how else "--master-port", str(free_port())]
    words[0] = shutil.which(words[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [*words, str(REPOSITORY / "launcher/train.py"), "optimizer=sgd", "epochs=2", "threads=1", "hydra.run.dir=run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "run")
    assert (found["world_size"], found["threads"], found["step"]) == (world, 1, 42)
    assert found["final"]["test/accuracy"] > 0.8


def test_a_sweep_runs_each_trial_in_processes_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "launcher/train.py"), "-m", "optimizer=sgd,adam", "epochs=1",
         "wandb.mode=disabled", "hydra.sweep.dir=grid"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trials = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("grid/*/summary.json")}
    assert len(trials) == 2 and all(trial["status"] == "finished" for trial in trials.values())
    assert any("adam" in name for name in trials) and any("sgd" in name for name in trials)


def test_a_whole_run_with_wandb_whatever_its_server_does(tmp_path):
    """Offline, and online against a server that refuses: the same record, one warning, a segment that W&B can read."""
    from test_tracking import history, inspect, segments

    (tmp_path / "own.py").write_text(OWN)
    key = "k" * 40
    records = {}
    for mode, environment in {
        "disabled": {},
        "offline": {"WANDB_MODE": "offline"},
        "online": {"WANDB_MODE": "online", "WANDB_API_KEY": key, "WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}"},
    }.items():
        words = [
            *(w for w in OWN_RUN if not w.startswith("hydra.run.dir")),
            f"hydra.run.dir={mode}",
            f"wandb.mode={mode}",
        ]
        run = train(words, tmp_path, 1, environment, name=f"io-{mode}").ok(90)
        records[mode] = (tmp_path / mode / "metrics.jsonl").read_text()
        warnings = [line for line in (tmp_path / mode / "train.log").read_text().splitlines() if " WARNING " in line]
        assert len(warnings) == (1 if mode == "online" else 0), warnings
        assert "Traceback" not in run.err() and "finished" in run.out()
        if mode != "disabled":
            (segment,) = segments(tmp_path / mode)
            read = inspect(segment)
            assert "own.load" in json.dumps(read), "the config is in it"
            assert len(history(read)) >= len(records[mode].splitlines())
    assert records["disabled"] == records["offline"] == records["online"]
    for path in (tmp_path / "online").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.soak
def test_a_run_that_compiles_nothing_does_not_import_the_compiler(tmp_path):
    """1.2 s of every start, which torch's optimizers take otherwise."""
    code = (
        "import sys; from launcher import train; train.command(sys.argv[1:]); "
        "sys.exit(3 if 'torch._dynamo' in sys.modules else 0)"
    )
    words = ["epochs=2", "optimizer=adamw", "device=cpu", "wandb.mode=disabled", "hydra.run.dir=run"]
    for _ in range(2):  # a resumed run loads the optimizer's state as well
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
