"""W&B as a view of the record."""

import base64
import contextlib
import hashlib
import json
import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from processes import train as whole_run
from wandb_server import (
    CONFIG,
    KEY,
    LONG_KEY,
    Server,
    clean_environment,
    free_port,
    history,
    inspect,
    left_behind,
    segments,
    sync,
    train,
)

from launcher.run.record import Record
from launcher.run.trackers.wandb import WandbTracker, wanted_mode

UNNAMED = dict.fromkeys(("project", "entity", "name", "group", "tags"))


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "auto"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
    ],
)
def test_the_environment_decides_where_the_config_leaves_it_open(monkeypatch, mode, environment, expected):
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wanted_mode(mode) == expected


# Each case is a whole run in a process of its own; all of them run at once, and each test looks at one.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case, side by side: what each one needs of the two cores is little, most of it is waiting."""
    root = tmp_path_factory.mktemp("wandb")
    line = {"_step": 20}
    known = {
        "id": "b",
        "name": "runid01",
        "displayName": "name",
        "summaryMetrics": "{}",
        "config": "{}",
        "logLineCount": 0,
        "historyLineCount": 20,
        "eventsLineCount": 0,
        "historyTail": json.dumps([json.dumps(line)]),
        "eventsTail": "[]",
        "tags": [],
        "wandbConfig": json.dumps({"t": 1}),
    }
    found = {}
    with contextlib.ExitStack() as stack:
        hangs, fails, denies, breaks, works, resumes = (
            stack.enter_context(Server(*arguments))
            for arguments in (("hangs",), ("500",), ("401",), ("breaks",), ("works",), ("works", known))
        )
        refuses = f"http://127.0.0.1:{free_port()}"

        def url(server):
            return f"http://127.0.0.1:{server.server_port}"

        def killed_and_resumed(name):
            first = train(root / name, refuses, key=None, die=True, last=20, seconds=3.0)
            second = train(root / name, refuses, key=None, resume=12, first=13)
            return {"first": first, "second": second}

        def synced(name):
            run = train(root / name, refuses, key=None)
            with Server("works") as server:
                sync(segments(run["dir"])[0], url(server), root / f"home-{name}")
                return run | {"rows": server.rows}

        cases = {
            "hangs": lambda name: train(root / name, url(hangs)),
            "refuses": lambda name: train(root / name, refuses),
            "fails": lambda name: train(root / name, url(fails)),
            "denies": lambda name: train(root / name, url(denies), key=LONG_KEY, netrc=True),
            "breaks": lambda name: train(root / name, url(breaks), seconds=3.0),
            "works": lambda name: train(root / name, url(works)),
            "resumes": lambda name: train(root / name, url(resumes), resume=12, first=13),
            "no_key": lambda name: train(root / name, refuses, key=None, mode="online"),
            "bad_key": lambda name: train(root / name, refuses, key="short"),
            "child_killed": lambda name: train(root / name, refuses, key=None, seconds=2.0, kill_child=True),
            "signalled": lambda name: train(root / name, refuses, key=None, seconds=1.0, signal_all=True),
            "killed": killed_and_resumed,
            "synced": synced,
        }
        (root / "resumes").mkdir()
        rows = "".join(json.dumps({"step": n, "train/loss": 1 / n}) + "\n" for n in range(1, 15))
        (root / "resumes" / "metrics.jsonl").write_text(rows)
        with ThreadPoolExecutor(4) as pool:
            started = {name: pool.submit(case, name) for name, case in cases.items()}
            found = {name: future.result() for name, future in started.items()}
        found["servers"] = {"works": works, "resumes": resumes, "denies": denies}
    yield found


BROKEN = ["hangs", "refuses", "fails", "denies", "breaks"]


@pytest.mark.parametrize("case", [*BROKEN, "no_key", "bad_key"])
def test_whatever_is_wrong_with_the_server_the_run_is_recorded_offline_with_one_warning(runs, case):
    run = runs[case]
    assert run["code"] == 0
    assert len(run["warnings"]) == 1 and run["warnings"][0].startswith("launcher WARNING"), run["err"]
    (segment,) = segments(run["dir"])
    records = inspect(segment)
    assert [row["_step"] for row in history(records)] == list(range(1, 31))
    assert [row["train/loss"] for row in history(records)] == [1 / n for n in range(1, 31)]
    (end,) = [line for line in run["err"] if "wandb sync" in line]
    assert end.endswith(str(segment))


@pytest.mark.parametrize("case", BROKEN)
def test_a_dead_server_costs_seconds(runs, case):
    # 2.5 s on an idle machine, 5 s are promised; several runs share two cores here.
    assert runs[case]["finish"] < 8
    assert runs[case]["wall"] - runs[case]["started"] - runs[case]["finish"] < 5


@pytest.mark.parametrize("case", [*BROKEN, "works", "no_key", "bad_key", "child_killed", "signalled"])
def test_training_never_notices(runs, case):
    run = runs[case]
    assert run["slowest"] < 0.05
    assert not run["wandb_imported"] and run["handlers_kept"]
    assert run["left"] == []
    assert all(line.startswith("launcher ") for line in run["err"]), run["err"]  # nothing of W&B's own
    assert len(run["out"].splitlines()) == 1


def test_warnings_say_what_is_wrong(runs):
    said = {case: runs[case]["warnings"][0] for case in [*BROKEN, "no_key", "bad_key"]}
    assert "refused" in said["refuses"]
    assert "does not answer" in said["hangs"] or "timed out" in said["hangs"]
    assert "500" in said["fails"]
    assert "401" in said["denies"]
    assert "no API key" in said["no_key"]
    assert "API key" in said["bad_key"]


def test_the_offline_run_reads_back_with_config_metrics_and_picture(runs):
    (segment,) = segments(runs["synced"]["dir"])
    records = inspect(segment)
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    assert run["run_id"] == "runid01" and run["project"] == "project" and run["run_group"] == "group"
    config = run["config"]["update"]
    assert config["optimizer"] == CONFIG["optimizer"] and config["seed"] == 3
    rows = history(records)
    assert rows[2] | {"epoch": 0.3, "train/loss": 1 / 3} == rows[2]
    assert rows[-1]["_step"] == 30 and rows[-1]["curves._type"] == "image-file"
    summary = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    assert summary["test/accuracy"] == 0.625 and summary["status"] == "finished"
    assert summary.get("best/eval/loss", summary.get("best", {})) == 0.125
    assert list((segment / "files" / "media").rglob("*.png"))
    assert not runs["synced"]["warnings"]


def test_an_offline_run_synced_later_uploads_each_step_once(runs):
    assert [row["_step"] for row in runs["synced"]["rows"]] == list(range(1, 31))


def test_online_uploads_each_step_once_and_warns_of_nothing(runs):
    server, run = runs["servers"]["works"], runs["works"]
    assert [row["_step"] for row in server.rows] == list(range(1, 31))
    assert [row["train/loss"] for row in server.rows] == [1 / n for n in range(1, 31)]
    assert any(name.startswith("media/images/curves") for name in server.uploads)
    assert json.loads(server.uploads["wandb-summary.json"])["test/accuracy"] == 0.625
    assert not run["warnings"] and segments(run["dir"]) == []
    assert any("/runs/runid01" in line for line in run["err"])


def test_a_resumed_online_run_goes_on_after_the_last_step_of_the_server(runs):
    # The server has steps up to 20, the record was cut back to 12 and goes to 30.
    assert [row["_step"] for row in runs["servers"]["resumes"].rows] == list(range(21, 31))
    rows = Record(runs["resumes"]["dir"] / "metrics.jsonl").rows()
    assert [row["step"] for row in rows] == list(range(1, 31))


def test_a_killed_and_resumed_offline_run_has_one_segment_with_each_step_once(runs):
    run = runs["killed"]
    assert run["first"]["code"] == -signal.SIGKILL
    (segment,) = segments(run["second"]["dir"])
    records = inspect(segment)
    assert [row["_step"] for row in history(records)] == list(range(1, 31))
    (found,) = {r["run"]["run_id"] for r in records if r["type"] == "run"}
    assert found == "runid01"
    assert len(list((run["second"]["dir"] / "wandb" / "superseded").iterdir())) == 1


def test_wandb_does_not_outlive_a_killed_trainer(runs):
    child = runs["killed"]["first"]["child"]
    assert left_behind(child) == []


def test_a_killed_tracker_process_is_replaced(runs):
    run = runs["child_killed"]
    assert run["code"] == 0 and len(run["warnings"]) == 1
    (segment,) = segments(run["dir"])
    assert [row["_step"] for row in history(inspect(segment))] == list(range(1, 31))


def test_the_signals_of_a_cluster_that_ends_a_job_lose_nothing(runs):
    run = runs["signalled"]
    assert run["code"] == 0 and not run["warnings"], run["err"]
    (segment,) = segments(run["dir"])
    assert [row["_step"] for row in history(inspect(segment))] == list(range(1, 31))


def test_the_api_key_is_in_no_file(runs):
    found, searched = [], 0
    for name, run in runs.items():
        if name == "servers":
            continue
        for file in run.get("dir", run.get("second", {}).get("dir")).rglob("*"):
            if file.is_file():
                searched += 1
                data = file.read_bytes()
                found += [file for key in (KEY, LONG_KEY) if key.encode() in data]
    assert searched > 50 and found == []
    expected = "Basic " + base64.b64encode(f"api:{LONG_KEY}".encode()).decode()
    assert expected in [authorization for _, authorization in runs["servers"]["denies"].requests]  # it was in use


def test_a_disabled_tracker_starts_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level(logging.INFO, logger="launcher"):
        tracker = WandbTracker(tmp_path, {}, UNNAMED | {"mode": "auto"}, "runid01")
        tracker.log({"step": 1})
        tracker.finish({}, {})
    assert list(tmp_path.iterdir()) == [] and not caplog.records


def test_beside_training_on_all_cores_wandb_takes_what_is_left(tmp_path, monkeypatch):
    """Its two processes are nice; Linux shares a processor among sessions first, where it groups by them."""
    for name, value in clean_environment(tmp_path, "http://127.0.0.1:9", None).items():
        monkeypatch.setenv(name, value)
    Record(tmp_path / "metrics.jsonl").open(None)
    tracker = WandbTracker(tmp_path, {}, UNNAMED | {"mode": "offline"}, "runid01", wait=0.01)
    deadline = time.monotonic() + 60
    while tracker._service is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker._child is not None and tracker._service is not None
    for pid in (tracker._child.pid, tracker._service):
        assert os.getpriority(os.PRIO_PROCESS, pid) == 10
        group = Path(f"/proc/{pid}/autogroup")
        assert not group.exists() or "nice 10" in group.read_text() or os.getsid(pid) != pid
    assert tracker.finish({}, {}) and len(segments(tmp_path)) == 1


@pytest.mark.parametrize("which", ["best", "all"])
def test_checkpoints_become_artifacts_by_wandbs_own_reader(which, tmp_path):
    """Every file of the checkpoint under its MD5; `best` where the evaluation was best."""
    words = ["epochs=3", "optimizer.lr=0.3", "checkpoint.keep=2", "wandb.mode=offline", f"wandb.artifacts={which}"]
    home = clean_environment(tmp_path, "http://127.0.0.1:9", None)
    whole_run([*words, "hydra.run.dir=run"], tmp_path, environment=home).ok()
    (segment,) = segments(tmp_path / "run")
    found = {r["artifact"]["metadata"]: r["artifact"] for r in inspect(segment) if r["type"] == "artifact"}
    kept = sorted((tmp_path / "run/checkpoints").glob("step_*"))
    best = torch.load(kept[-1] / "state.pt", weights_only=True)["progress"]["best_step"]
    expected = {path.name: {path.name} for path in kept}
    expected[f"step_{best:08d}"].add("best")
    if which == "best":
        expected = {name: aliases for name, aliases in expected.items() if "best" in aliases}
    called = {json.loads(about)["checkpoint"]: set(one["aliases"]) - {"latest"} for about, one in found.items()}
    assert called == expected and list(called) == sorted(called), "W&B calls the last one latest, by itself"
    for about, artifact in found.items():
        place = tmp_path / "run/checkpoints" / json.loads(about)["checkpoint"]
        digests = {file["path"]: file["digest"] for file in artifact["manifest"]["contents"]}
        assert digests == {
            file.name: base64.b64encode(hashlib.md5(file.read_bytes()).digest()).decode() for file in place.iterdir()
        }
        assert artifact["type"] == "model"
