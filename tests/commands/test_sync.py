"""launcher sync against a server on loopback: every finished offline run once, and no other."""

import fcntl
import json
import shutil
import subprocess
import sys

import pytest
from test_tracking import KEY, Server, clean_environment, train

from launcher.commands.sync import find


def sync(root, url, *words, key=KEY):
    home = root / "home"
    home.mkdir(parents=True, exist_ok=True)
    environment = clean_environment(home, url, key)
    command = [sys.executable, "-m", "launcher", "sync", str(root / "outputs"), *words]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def mark(run_dir, status):
    (run_dir / ".hydra").mkdir(exist_ok=True)
    (run_dir / ".hydra/config.yaml").write_text("seed: 0\n")
    if status:
        (run_dir / "summary.json").write_text(json.dumps({"status": status, "step": 30}))


def test_what_is_ready(tmp_path):
    """Finished, and not uploaded before; a run that is resumed puts its older segments aside."""
    for name, status, segment in (
        ("finished", "finished", "offline-run-1"),
        ("uploaded", "finished", "offline-run-2"),
        ("deep/er/stopped", "stopped", "offline-run-3"),
        ("interrupted", "", "offline-run-4"),
        ("held", "finished", "offline-run-5"),
        ("finished", "finished", "superseded/offline-run-0"),
        ("online", "finished", "run-6"),
    ):
        place = tmp_path / name / "wandb" / segment
        place.mkdir(parents=True)
        (place / "run-x.wandb").touch()
        mark(tmp_path / name, status)
    (tmp_path / "uploaded/wandb/offline-run-2/run-x.wandb.synced").touch()
    with open(tmp_path / "held/.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ready, later = find(tmp_path, False)
        assert ready == [tmp_path / "finished/wandb/offline-run-1"]
        states = {run.name: state for run, state in later}
        assert states == {"stopped": "stopped", "interrupted": "interrupted", "held": "running"}
        assert len(find(tmp_path, True)[0]) == 3


@pytest.mark.soak
def test_each_finished_run_is_uploaded_once(tmp_path):
    one, other = tmp_path / "outputs/one", tmp_path / "outputs/grids/a grid/lr=0.1"
    one.parent.mkdir()
    train(one, "http://127.0.0.1:9", key=None)
    shutil.copytree(one, other)
    mark(one, "finished")
    mark(other, "stopped")
    assert sync(tmp_path / "nowhere", "")[0] == 2
    with Server("401") as server:
        status, out, _ = sync(tmp_path, f"http://127.0.0.1:{server.server_port}")
        assert status == 1 and "FAILED" in out and not list(tmp_path.rglob("*.synced"))
    with Server("works") as server:
        url = f"http://127.0.0.1:{server.server_port}"
        status, out, err = sync(tmp_path, url, "--dry-run")
        assert status == 0 and out.count("ready") == 1 and server.rows == [], (out, err)
        status, out, err = sync(tmp_path, url)
        assert status == 0 and out.count("uploaded") == 1 and "lr=0.1: stopped" in out, (out, err)
        assert [row["_step"] for row in server.rows] == list(range(1, 31))
        status, out, err = sync(tmp_path, url)
        assert status == 0 and "nothing" in out and len(server.rows) == 30, (out, err)
        status, out, err = sync(tmp_path, url, "--all")
        assert status == 0 and out.count("uploaded") == 1 and len(server.rows) == 60, (out, err)
