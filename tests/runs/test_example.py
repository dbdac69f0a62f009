"""examples/: a project of a person's own, outside of this repository, by the commands that its README gives."""

import functools
import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_loop import same_bits
from processes import REPOSITORY, rows, summary, train

WORDS = [
    "--config-dir",
    "conf",
    "experiment=spirals",
    "loss=hesitant",
    "hydra.run.dir=run",
    "threads=1",
    "epochs=3",
    "log_every=5",
]


def project(directory):
    return Path(shutil.copytree(REPOSITORY / "examples/spirals", directory))


def test_the_same_result_on_two_processes_and_after_a_stop(tmp_path):
    alone, two, stopped = (project(tmp_path / name) for name in ("alone", "two", "stopped"))
    train(WORDS, alone).ok()
    train([*WORDS, "device=cpu"], two, 2).ok()
    wanted, found = rows(alone / "run"), rows(two / "run")
    assert len(wanted) == len(found) > 3
    for one, other in zip(wanted, found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    run = train(WORDS, stopped)
    while run.processes[0].exitcode is None:
        record = stopped / "run/metrics.jsonl"
        if record.exists() and record.stat().st_size:
            run.signal(0, signal.SIGTERM)
            break
    run.ok()
    train(WORDS, stopped, name="io1").ok()
    same_bits(alone, stopped)


@pytest.mark.soak
def test_the_commands_of_its_readme(tmp_path):
    place = project(tmp_path / "mine")
    (block,) = re.findall("```bash\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": scripts, "WANDB_MODE": "disabled"}
    run = functools.partial(
        subprocess.run, shell=True, cwd=place, capture_output=True, text=True, timeout=200, env=environment
    )
    for command in block.strip().splitlines():
        done = run(command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert summary(place / "run")["final"]["eval/accuracy"] > 0.95
    # What the launcher proposes finds the project's own conf/ again.
    tried = "launcher find-lr --config-dir conf experiment=spirals find_lr.steps=50 hydra.run.dir=tried"
    for number, asked in enumerate(("launcher compare sweep", tried)):
        done = run(asked)
        (proposed,) = re.findall("^ +(launcher train --config-dir .*)", done.stdout, re.MULTILINE)
        again = run(f"{proposed} epochs=1 hydra.run.dir=again{number}")
        assert again.returncode == 0, (asked, done.stdout, done.stderr, again.stderr)
    assert summary(place / "two")["world_size"] == 2 and len(list((place / "sweep").glob("*/summary.json"))) == 2


def test_its_own_error_is_one_sentence(tmp_path):
    place = project(tmp_path / "mine")
    run = train([*WORDS, "data.arms=1"], place).wait()
    assert run.status == [2] and run.err().startswith("error: data.arms=1: one spiral")


def test_its_loss_is_cross_entropy_less_doubt():
    spec = importlib.util.spec_from_file_location("spirals", REPOSITORY / "examples/spirals/spirals.py")
    spirals = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(spirals)
    scores, classes = torch.randn(8, 3), torch.arange(8) % 3
    plain = torch.nn.functional.cross_entropy(scores, classes, reduction="none")
    doubt = torch.distributions.Categorical(logits=scores).entropy()
    torch.testing.assert_close(spirals.Hesitant(0.3)(scores, classes), plain - 0.3 * doubt)
    assert spirals.Hesitant(0.3)(torch.zeros(1, 3), classes[:1]).item() == pytest.approx(0.7 * math.log(3))
