"""How many threads `threads=auto` is: as many as were asked for, are there, and help."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from kill_loop import OWN, place
from processes import REPOSITORY, summary, train
from torch import nn

from launcher.data import TensorSplit
from launcher.distributed import process_group
from launcher.distributed.process_group import Ranks
from launcher.training import clock

TRAIN = str(REPOSITORY / "launcher/train.py")
RUN = ["data._target_=own.load", "model.hidden=[4]", "epochs=1", "device=cpu", "wandb.mode=disabled"]
ALONE = Ranks(0, 1, 0, 1)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "1"]


@pytest.fixture
def exported(monkeypatch):
    """Sets OMP_NUM_THREADS, which the tests' own environment has."""

    def export(value):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if value is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", value)

    return export


@pytest.mark.parametrize(
    ("value", "words", "expected"),
    [("2", [], 2), ("3", ["threads=1"], 1), pytest.param("1", [], 1, marks=pytest.mark.soak)],
)
def test_the_variable_counts_in_a_plain_start(value, words, expected, exported, tmp_path):
    place(tmp_path)
    exported(value)
    done = subprocess.run(
        [sys.executable, TRAIN, *RUN, *words, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["threads"] == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("3", 3), ("4,2", 4), (" 5 ", 5), ("", None), ("0", None), ("many", None)]
)
def test_what_the_variable_says(value, expected, exported):
    exported(value)
    assert process_group.exported_threads() == expected
    assert process_group.choose_threads(7, ALONE) == 7


LAUNCHED = [
    ("torchrun", [*TORCHRUN, "2"], None, None),  # it sets the variable to 1
    ("torchrun, exported", [*TORCHRUN, "2"], "3", 3),
    ("torchrun of one", [*TORCHRUN, "1"], None, None),
    ("accelerate", ACCELERATE, None, None),  # so does it, always
    ("accelerate, exported", ACCELERATE, "3", 3),
    ("accelerate, asked", [*ACCELERATE, "--num_cpu_threads_per_process", "4"], None, 4),
    ("accelerate, asked and exported", [*ACCELERATE, "--num_cpu_threads_per_process=4"], "3", 4),
]


@pytest.mark.parametrize(
    ("words", "value", "expected"),
    [
        pytest.param(*row, id=name, marks=() if name in ("torchrun", "accelerate") else pytest.mark.soak)
        for name, *row in LAUNCHED
    ],
)
def test_a_launchers_own_number_is_none(words, value, expected, exported, tmp_path):
    """torchrun and accelerate launch set the variable where nobody has; what they were started with tells."""
    exported(value)
    (tmp_path / "own.py").write_text(
        "import json, os\nfrom launcher.distributed.process_group import exported_threads\n"
        "json.dump([exported_threads(), os.environ.get('OMP_NUM_THREADS')], open(f'at{os.getpid()}.json', 'w'))\n"
    )
    subprocess.run(
        [sys.executable, *words, str(tmp_path / "own.py")], cwd=tmp_path, check=True, timeout=120, capture_output=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip
    found = [json.loads(file.read_text()) for file in tmp_path.glob("at*.json")]
    assert found and all(threads == expected for threads, _ in found), found
    if value is None and expected is None and words[-1] != "1":
        assert all(variable == "1" for _, variable in found), "what would count else"


def mlp(*widths):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def part(*shape):
    return TensorSplit(torch.zeros(3, *shape), torch.zeros(3).long())


@pytest.mark.parametrize(("width", "samples"), [(16, 64), (512, 64), (512, 1024), (2048, 64)])
def test_as_many_as_have_their_share_of_a_matrix_product(width, samples):
    """2 * samples * width * width operations in each of three."""
    found = clock.useful_threads(mlp(width, width, width, width), part(width), samples)
    assert found == max(1, int(2 * samples * width * width / clock.THREAD))


def test_convolutions_count_each_place():
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))
    operations = 2 * 8 * 64 * 64 * 9 * (3 * 32 + 32 * 32)
    assert clock.useful_threads(net, part(3, 64, 64), 8) == int(operations / 2 / clock.THREAD)


def test_the_model_and_the_generators_are_left_as_they_were():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    net[1].eval()
    before = {name: one.clone() for name, one in net.state_dict().items()}
    drawn = torch.random.get_rng_state()
    assert clock.useful_threads(net, part(4), 6) == 1
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert all(one.device.type == "cpu" for one in net.state_dict().values())
    assert [module.training for module in net] == [True, False, True, True]
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_a_model_that_needs_memory_gets_its_share():
    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * x.sum().item()

    assert clock.useful_threads(Looks(4, 2), part(4), 6) is None
    assert clock.useful_threads(nn.Flatten(), part(4), 6) is None


def test_auto_is_the_least_of_what_is_there_and_what_helps(exported):
    exported(None)
    there = process_group.cores()
    assert process_group.choose_threads("auto", ALONE) == there
    assert process_group.choose_threads("auto", ALONE, lambda: 1) == 1
    assert process_group.choose_threads("auto", ALONE, lambda: 10**6) == there
    assert process_group.choose_threads("auto", Ranks(0, 2 * there, 0, 2 * there), lambda: 5) == 1
    exported("2")
    assert process_group.choose_threads("auto", ALONE, lambda: 1) == 2


def test_a_small_model_takes_one_of_the_cores(tmp_path):
    place(tmp_path, OWN)
    train([*RUN, "hydra.run.dir=run"], tmp_path, environment={"OMP_NUM_THREADS": ""}).ok()
    assert summary(tmp_path / "run")["threads"] == 1


@pytest.mark.parametrize(("variable", "expected"), [("2", 2), pytest.param(None, 1, marks=pytest.mark.soak)])
def test_a_sweep_takes_what_was_exported(variable, expected, exported, tmp_path):
    place(tmp_path, OWN)
    exported(variable)
    sweep = [sys.executable, TRAIN, *RUN, "-m", "seed=0", "hydra.sweep.dir=grid"]
    subprocess.run(sweep, cwd=tmp_path, check=True, timeout=120, capture_output=True)
    (trial,) = tmp_path.glob("grid/*seed=0*/")
    assert summary(trial)["threads"] == expected
