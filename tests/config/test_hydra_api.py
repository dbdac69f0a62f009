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


OTHER = """
from dataclasses import dataclass, field
from typing import Any
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

class Other(Sweeper):
    pass

class Elsewhere(Launcher):
    pass

@dataclass
class OtherConf:
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}])
    _target_: str = "hydra_plugins.other.Other"
    sampler: Any = None

@dataclass
class ElsewhereConf:
    _target_: str = "hydra_plugins.other.Elsewhere"

store = ConfigStore.instance()
store.store(group="hydra/sweeper", name="optuna", node=OtherConf, provider="other")
store.store(group="hydra/sweeper/sampler", name="tpe", node={}, provider="other")
store.store(group="hydra/launcher", name="ray", node=ElsewhereConf, provider="other")
"""


def test_a_sweeper_or_launcher_of_another_package_hides_none_of_ours(tmp_path):
    """hydra-optuna-sweeper and hydra-ray-launcher have the names of ours."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/other.py").write_text(OTHER)
    for names, ours in ((["optuna", "ray"], True), (["hydra_optuna", "hydra_ray"], False)):
        words = ["-m", f"hydra/sweeper={names[0]}", f"hydra/launcher={names[1]}", "--cfg", "hydra"]
        status, out, err = answer(words, tmp_path)
        assert status == 0, err
        for target in ("launcher_sweeps.OptunaSweeper", "launcher_sweeps.RayLauncher"):
            assert (f"hydra_plugins.{target}" in out) == ours, out
        for target in ("hydra_plugins.other.Other", "hydra_plugins.other.Elsewhere", "hydra/sweeper/sampler: tpe"):
            assert (target in out) != ours, out
