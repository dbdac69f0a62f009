"""Hydra's private names: its newest pre-release still has them, and answers as the pinned release does."""

import os
import subprocess
import sys

import pytest
from processes import REPOSITORY

NEXT = ["hydra-core>=1.4.0.dev1", "omegaconf>=2.4.0.dev1"]


@pytest.fixture(scope="module")
def next_hydra(tmp_path_factory):
    """The newest Hydra of the index, pre-releases too, in a folder of its own."""
    folder = tmp_path_factory.mktemp("hydra")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--pre", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, *NEXT], capture_output=True, text=True, timeout=180)
    if done.returncode:
        pytest.skip("no index has a newer Hydra")
    return folder


def answer(words, path=None):
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    program = [sys.executable, "-W", "ignore", str(REPOSITORY / "launcher/train.py"), *words]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.soak
@pytest.mark.parametrize(
    "words",
    [["--cfg", "job", "optimizer=adamw"], ["--help"], ["epochs=many"], ["lr=0.1"], ["optimizer=sgdd"], ["~seed"],
     ["model.hidden=[1"], ["+loss=mse"], ["-m", "seed=1,2", "epochs=many"]],
    ids=" ".join,
)  # fmt: skip
def test_the_next_hydra_answers_the_same(words, next_hydra):
    assert answer(words, next_hydra) == answer(words)
