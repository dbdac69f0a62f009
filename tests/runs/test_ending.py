"""The end of a run, killed at each of its steps: the next start makes up for what is missing, W&B included."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import processes
import pytest
from kill_loop import OWN, RUN, place, same_bits
from processes import REPOSITORY, rows, start, summary
from test_tracking import KEY, Server, clean_environment, history, inspect, segments

train = partial(processes.train, pictures=True)

# Kills the process, once, before or after a file gets its name: KILL="summary.json before".
KILLING = (
    OWN
    + """
import glob, os, signal, time

name, when = os.environ.get("KILL", "- -").split()
replace = os.replace

def killing(source, target):
    hit = str(target).endswith(name) and not os.path.exists("killed")
    if hit:
        open("killed", "w").close()
    if hit and when == "full":
        with open("run/filler", "wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        hit = False
    if hit and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    while hit and "FIRST" in os.environ and not glob.glob(os.environ["FIRST"]):
        time.sleep(0.05)  # for W&B's process, which may still be starting
    if hit and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = killing
"""
)
FEW = [*(word for word in RUN if not word.startswith("epochs=")), "epochs=3", "wandb.mode=offline", "wandb.tables=4",
       "trackers=[wandb,csv]"]  # fmt: skip
ENVIRONMENT = {"WANDB_MODE": "", "WANDB_SILENT": "true"}
MOMENTS = [f"{name} {when}" for name in ("evaluation.json", "predictions.npz", "unshown", "summary.json", "curves.png",
                                         "report.html") for when in ("before", "after")]  # fmt: skip
USUAL = [
    pytest.param(moment, marks=() if moment in ("predictions.npz after", "report.html before") else pytest.mark.soak)
    for moment in MOMENTS
]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    directory = place(tmp_path_factory.mktemp("calm"), KILLING)
    train(FEW, directory, environment=ENVIRONMENT).ok()
    return directory


def whole(directory):
    """All that a finished run shows is there and whole; W&B's by its own reader, in the one segment that counts."""
    (segment,) = segments(directory / "run")
    records, figures, found = inspect(segment), {}, summary(directory / "run")
    for record in records:
        if record["type"] == "summary":
            figures |= record["summary"].get("update", {})
    assert found["status"] == figures["status"] == "finished"
    items = history(records)
    steps = [item["_step"] for item in items]
    assert steps == sorted(steps) and sorted(set(steps)) == [row["step"] for row in rows(directory / "run")]
    assert figures["test/accuracy"] == found["final"]["test/accuracy"]
    assert figures["best/test/accuracy"] == found["best"]["test/accuracy"]
    for name in ("curves", "predictions"):
        assert sum(f"{name}._type" in item for item in items) == 1
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]
    assert (directory / "run/report.html").read_text().endswith("</html>\n")
    assert (directory / "run/curves.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert (directory / "run/metrics.csv").read_text().count("\n") == len(rows(directory / "run")) + 1
    assert not (directory / "run/.hydra/unshown").exists() and not list((directory / "run").rglob("*.new"))


def test_undisturbed_it_is_whole(calm):
    whole(calm)


@pytest.mark.parametrize("moment", USUAL)
def test_killed_at_its_end_the_next_start_makes_it_whole(moment, calm, tmp_path):
    directory = place(tmp_path, KILLING)
    run = train(FEW, directory, environment=ENVIRONMENT | {"KILL": moment}).wait()
    assert run.status == [-signal.SIGKILL], run.err()
    finished = (directory / "run/summary.json").exists()
    assert finished == (moment in MOMENTS[MOMENTS.index("summary.json after") :])
    out = train(FEW, directory, environment=ENVIRONMENT, name="io1").ok().out()
    assert ("finished already" in out) == finished
    whole(directory)
    same_bits(calm, directory)
    before = {path: path.stat().st_mtime_ns for path in (directory / "run").rglob("*")}
    assert "finished already" in train(FEW, directory, environment=ENVIRONMENT, name="io2").ok().out()
    after = {path: path.stat().st_mtime_ns for path in (directory / "run").rglob("*")}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {".lock", "train.log"}, "there is nothing left to do the second time"


@pytest.mark.parametrize(
    "moment",
    ["summary.json", *(pytest.param(one, marks=pytest.mark.soak) for one in ("evaluation.json", "curves.png"))],
)
def test_a_disk_that_is_full_at_the_end(moment, calm, tmp_path):
    """Full before the summary, the run fails, and ends with the next start; full after it, it lacks its pictures."""
    directory = place(tmp_path, KILLING)
    (directory / "run").mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", directory / "run"]).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    words = [word for word in FEW if not word.startswith(("wandb", "trackers"))] + ["trackers=[]"]
    try:
        run = train(words, directory, environment={"KILL": f"{moment} full"}).wait()
        if moment == "evaluation.json":
            assert run.status == [1] and "No space left" in run.err().splitlines()[-1]
        else:
            assert run.status == [0] and "report.html is not drawn (OSError: [Errno 28] No space left" in run.out()
            assert summary(directory / "run")["status"] == "finished"
        assert not (directory / "run/report.html").exists()
        refused = train([*words, "hydra.run.dir=run/inner"], directory, name="io1").wait()
        assert refused.status == [2] and "bytes free" in refused.err() and not (directory / "run/inner").exists()
        (directory / "run/filler").unlink()
        train(words, directory, name="io2").ok()
        assert (directory / "run/report.html").read_text().endswith("</html>\n")
        assert (directory / "run/curves.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        same_bits(calm, directory)
    finally:
        subprocess.run(["umount", directory / "run"], check=True)


@pytest.mark.parametrize("damage", ["removed", "cut short", "empty"])
@pytest.mark.parametrize("name", ["report.html", "curves.png", "metrics.csv"])
def test_what_is_missing_or_broken_is_made_again(name, damage, calm, tmp_path):
    if name == "metrics.csv" and damage != "removed":
        pytest.skip("a table that was edited is its editor's")
    shutil.copytree(calm, tmp_path / "copy")
    file = tmp_path / "copy/run" / name
    text = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(text[: len(text) // 2] if damage == "cut short" else b"")
    out = train(FEW, tmp_path / "copy", environment=ENVIRONMENT).ok().out()
    assert "finished already" in out and "wandb" not in out
    assert file.read_bytes() == text if name != "curves.png" else len(file.read_bytes()) > len(text) // 2


def test_pictures_that_cannot_be_drawn_fail_no_run(tmp_path):
    """A matplotlib that does not import: the run has its result, and says what it lacks."""
    directory = place(tmp_path, KILLING)
    (directory / "matplotlib").mkdir()
    (directory / "matplotlib/__init__.py").write_text("raise ImportError('broken')")
    words = [word for word in FEW if not word.startswith(("wandb", "trackers"))] + ["trackers=[]"]
    environment = os.environ | {"PYTHONPATH": f"{directory}{os.pathsep}{REPOSITORY}", "WANDB_MODE": "disabled"}
    run = subprocess.run(
        [sys.executable, "-m", "launcher.train", *words], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("is not drawn (ImportError: broken)") == 2
    assert summary(directory / "run")["status"] == "finished"
    shutil.rmtree(directory / "matplotlib")
    train(words, directory).ok()
    assert (directory / "run/report.html").exists() and (directory / "run/curves.png").exists()


def test_a_segment_without_its_end_is_not_uploaded(tmp_path):
    from launcher.commands import sync

    directory = place(tmp_path, KILLING)
    more = {"KILL": "report.html after", "FIRST": "run/wandb/offline-run-*/*.wandb"}
    train(FEW, directory, environment=ENVIRONMENT | more).wait()
    ready, later = sync.find(directory, False)
    assert not ready and [(run.name, "start it again" in state) for run, state in later] == [("run", True)]
    train(FEW, directory, environment=ENVIRONMENT, name="io1").ok()
    ready, later = sync.find(directory, False)
    assert not later and ready == segments(directory / "run")


def test_an_upload_that_was_cut_short_is_finished_by_the_next_start(tmp_path):
    """Online: killed after the summary, the server has a run that failed; the next start ends it as what it is."""
    directory = place(tmp_path, KILLING)
    with Server("works") as server:
        (tmp_path / "home").mkdir()
        online = clean_environment(tmp_path / "home", f"http://127.0.0.1:{server.server_port}", KEY)
        words = ["train", [*FEW[:-3], "trackers=[wandb]", "wandb.mode=online", "wandb.id=runid01"], directory]
        run = start(_online, (*words, online | {"KILL": "report.html after"}), directory / "io0").wait()
        assert run.status == [-signal.SIGKILL]
        deadline = time.monotonic() + 30
        while not ends(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ends(server) == [1], "the process that was left ended it as failed"
        out = start(_online, (*words, online), directory / "io1").ok().out()
        assert "finished already" in out
        assert ends(server)[-1] == 0 and "media/images/curves" in " ".join(server.uploads)
    assert not (directory / "run/.hydra/unshown").exists()


def ends(server):
    """The exit codes that the server was told."""
    return [body.get("exitcode") for body in server.streams if body.get("complete")]


def _online(program, argv, directory, variables):
    for name in [*os.environ]:
        if name.startswith("WANDB"):
            del os.environ[name]
    os.environ.update(variables)
    processes._command(program, argv, directory)
