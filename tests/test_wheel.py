"""The package as a person installs it, in an environment of its own, away from the checkout.

The wheel that is tried out is made of the sdist, and has to be the one that the checkout gives.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import REPOSITORY

from launcher.__main__ import COMMANDS

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""


@pytest.mark.soak
def test_the_commands_of_an_installed_wheel(tmp_path):
    """Every command, with a class of the person's own beside it, on the conf/ that the wheel carries."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], REPOSITORY)
    (sdist,) = tmp_path.glob("hydra_accelerate_launcher-*.tar.gz")
    for name, source in (("of_sdist", sdist), ("of_checkout", REPOSITORY)):
        words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / name), str(source)]
        _run([*pip, *words], tmp_path)
    (wheel,) = (tmp_path / "of_sdist").glob("hydra_accelerate_launcher-*.whl")
    assert wheel.read_bytes() == (tmp_path / "of_checkout" / wheel.name).read_bytes()
    _run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], tmp_path)
    _run([*pip, "--python", str(tmp_path / "venv/bin/python"), "install", "-q", "--no-deps", str(wheel)], tmp_path)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # The dependencies are those that these tests run with; a .pth file in there, of the checkout's, is not read.
    (site / "reused.pth").write_text(str(Path(importlib.util.find_spec("torch").origin).parents[1]) + "\n")
    here = tmp_path / "here"
    here.mkdir()
    (here / "own.py").write_text(NET)

    called = set()

    def tell(program, *words):
        called.add(program)
        return _run([str(tmp_path / "venv/bin/launcher"), program, *words], here)

    ask = "import launcher; from importlib.metadata import version as v; print(launcher.__file__); "
    ask += "assert v('hydra-accelerate-launcher') == launcher.__version__"
    where = _run([str(tmp_path / "venv/bin/python"), "-c", ask], here)
    assert where.strip().startswith(str(tmp_path / "venv"))
    assert (Path(where.strip()).parent / "py.typed").is_file()
    words = ["model._target_=own.Net", "threads=1", "device=cpu", "wandb.mode=disabled"]
    assert "fine" in tell("train", *words, "check=true")
    tell("train", *words, "max_steps=100", "hydra.run.dir=run")
    assert json.loads((here / "run/summary.json").read_text())["step"] == 100
    assert "accuracy" in tell("evaluate", "run_dir=run", "device=cpu")
    assert "359 samples" in tell("predict", "run_dir=run", "part=test", "device=cpu")
    assert "written" in tell("export", "run_dir=run", "format=[safetensors,torch_export]", "output=model")
    assert "same " in tell("rerun", "run")
    first, again = ((here / name / "metrics.jsonl").read_text() for name in ("run", "run-rerun"))
    assert first == again
    tell("train", "-m", *words, "optimizer=sgd,adam", "max_steps=20", "hydra.sweep.dir=grid")
    assert "finished" in tell("compare", "grid")
    assert "fine" in tell("doctor", "--device", "cpu", "outputs")
    assert "nothing" in tell("sync", "run")
    assert "suggestion" in tell("find-lr", *words, "hydra.run.dir=range")
    assert "optimizer" in json.loads(tell("schema"))["properties"]
    assert called == COMMANDS.keys() - {"check"}


def _run(words, directory):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
