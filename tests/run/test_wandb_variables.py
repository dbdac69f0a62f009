"""W&B's own variables, and its sweep agent: read back by W&B's reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from processes import REPOSITORY, summary, train
from test_tracking import clean_environment, inspect
from wandb.wandb_agent import Agent

from launcher.config import messages

WORDS = ["wandb.mode=offline", "epochs=1", "threads=1", "hydra.run.dir=run", "model.hidden=[8]"]
VARIABLES = {
    "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_NAME": "a name", "WANDB_RUN_GROUP": "grouped",
    "WANDB_TAGS": "one,two", "WANDB_NOTES": "noted", "WANDB_JOB_TYPE": "sort", "WANDB_RUN_ID": "mine01",
}  # fmt: skip


def _run_of(place):
    """The record of the run in the one segment of a directory."""
    (segment,) = place.glob("offline-run-*")
    (run,) = {str(r["run"]): r["run"] for r in inspect(segment) if r["type"] == "run"}.values()
    return run


def test_variables_count_unless_the_command_line_says_otherwise(tmp_path):
    environment = clean_environment(tmp_path, "http://127.0.0.1:9", None) | {"WANDB_MODE": "offline"}
    train(WORDS, tmp_path, environment=environment | VARIABLES).ok()
    run = _run_of(tmp_path / "run/wandb")
    assert [run[key] for key in ("project", "entity", "display_name", "run_group")] == [
        "theirs",
        "team",
        "a name",
        "grouped",
    ]
    assert [run[key] for key in ("run_id", "notes", "job_type", "tags")] == ["mine01", "noted", "sort", ["one", "two"]]
    assert (tmp_path / "run/.hydra/run_id").read_text() == "mine01"

    ours = [
        "wandb.project=ours",
        "wandb.entity=us",
        "wandb.name=named",
        "wandb.group=g",
        "wandb.tags=[t]",
        "wandb.id=x1",
    ]
    words = [word.replace("=run", "=other") for word in WORDS]
    place = tmp_path / "elsewhere"
    train([*words, *ours], tmp_path, environment=environment | VARIABLES | {"WANDB_DIR": str(place)}, name="io1").ok()
    run = _run_of(place / "wandb")
    assert [run[key] for key in ("project", "entity", "display_name", "run_group")] == ["ours", "us", "named", "g"]
    assert run["run_id"] == "x1" and run["tags"] == ["t"] and not list((tmp_path / "other/wandb").glob("*run-*"))

    words = [word.replace("=run", "=third") for word in WORDS]
    train(words, tmp_path, environment=environment, name="io2").ok()
    assert _run_of(tmp_path / "third/wandb")["project"] == "launcher"


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["wandb.project=a/b"], {}, "wandb.project=a/b: must be a text of at most 128 characters, without any of /"),
        ([f"wandb.project={'p' * 129}"], {}, "at most 128 characters"),
        (["wandb.project=null"], {"WANDB_PROJECT": "a?b"}, "WANDB_PROJECT=a?b in the environment: must be"),
        ([f"wandb.tags=[{'t' * 65}]"], {}, "wandb.tags"),
        (["wandb.id='a b'"], {}, "wandb.id=a b"),
        ([], {"WANDB_RUN_ID": "a/b"}, "WANDB_RUN_ID=a/b in the environment"),
    ],
)
def test_what_wandb_would_refuse_is_a_sentence_before_anything_is_made(words, environment, said, tmp_path):
    run = train([*WORDS, *words], tmp_path, environment=environment).wait()
    assert run.status == [2] and said in run.err() and not (tmp_path / "run").exists()


def test_every_trial_of_a_sweep_is_a_run_of_its_own(tmp_path):
    script = [sys.executable, str(REPOSITORY / "launcher/train.py"), "-m", "seed=0,1", "epochs=1"]
    environment = os.environ | {"WANDB_RUN_ID": "one", "WANDB_MODE": "offline"}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "WANDB_RUN_ID: every trial of a sweep" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """W&B's agent as `wandb agent` has it, without a server to ask for the next run."""
    for name, value in clean_environment(tmp_path, "http://127.0.0.1:9", None).items():
        if name.startswith(("WANDB_", "HOME", "NETRC")):
            monkeypatch.setenv(name, value)
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    found = Agent(api=None, queue=None, sweep_id="sweep1")
    wandb.env.set_project("swept")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    return found


@pytest.mark.soak
def test_wandb_agent_starts_runs_of_its_sweep(agent, tmp_path):
    """The command of the documentation, with ${args_no_hyphens}: what the agent chose is trained under its id."""
    agent._sweep_command = ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    chosen = {"optimizer.lr": 0.03, "model.hidden": [8, 4], "channels_last": False, "epochs": 1, "optimizer": "adam"}
    for run_id, seed in (("aaaa1111", 1), ("bbbb2222", 2)):
        values = {name: {"value": value} for name, value in (chosen | {"seed": seed, "threads": 1}).items()}
        program = str(REPOSITORY / "launcher/train.py")
        agent._command_run({"type": "run", "run_id": run_id, "program": program, "args": values})
        assert agent._run_processes[run_id].wait() == 0
        (segment,) = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}")
        (run,) = (r["run"] for r in inspect(segment) if r["type"] == "run")
        assert (run["run_id"], run["sweep_id"], run["project"]) == (run_id, "sweep1", "swept")
    directories = sorted((tmp_path / "outputs").glob("*/*"))
    assert [summary(path)["status"] for path in directories] == ["finished"] * 2
    config = (directories[0] / ".hydra/config.yaml").read_text()
    assert "torch.optim.Adam" in config and "lr: 0.03" in config and "seed: 1" in config


def test_an_agent_with_hyphens_is_told_what_to_write(monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert "hyphens" not in messages.unread_words("unrecognized arguments: --optimizer.lr=0.1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    said = messages.unread_words("unrecognized arguments: --optimizer.lr=0.1")
    assert "as optimizer.lr=0.1. In a sweep of W&B: ${args_no_hyphens}" in said
