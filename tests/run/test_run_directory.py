"""A run directory taken up again: prolonged, shortened, judged anew, moved, damaged. It goes on, or says why not."""

import ctypes
import json
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import processes
import pytest
from kill_loop import OWN, RUN, place, same_bits
from processes import rows, summary, train
from test_resume import FAULTY, RUN_FAULTY

from launcher.run import shared

LONG, SHORT = 60, 33  # updates; the short run ends at no evaluation, no log line, no save and no end of an epoch
LENGTH = ("epochs=", "scheduler", "log_every=", "model.dropout=")
BASE = [word for word in RUN if not word.startswith(LENGTH)]
PLATEAU = ["scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "scheduler.warmup=6"]
LENGTHS = [*BASE, "model.dropout=0.2", "log_every=4", "epochs=1000", "log_grad_norm=true"]
CONSTANT = ["scheduler=constant", "scheduler.total_iters=1"]  # a number of its own, which the state holds
SCHEDULES = {"constant": CONSTANT, "plateau": PLATEAU}


def refused(words, directory, name="refused"):
    """What a start says that is refused, which leaves the directory as it is."""
    before = {path: path.read_bytes() for path in (directory / "run").rglob("*") if path.is_file()}
    run = train(words, directory, name=name).wait()
    assert run.status == [2] and "Traceback" not in run.err(), run.err()
    assert len(run.err().strip().splitlines()) <= 8 and run.err().startswith("error: ")
    assert {path: path.read_bytes() for path in (directory / "run").rglob("*") if path.is_file()} == before
    return run.err()


def edit(directory, old, new):
    file = directory / "own.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# --- Another length ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["plateau", pytest.param("constant", marks=pytest.mark.soak)])
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_run_that_is_prolonged_is_one_of_the_full_length(schedule, world, tmp_path):
    """Through two ends that are no boundary of anything, and one that is: record, state and best, to the last bit."""
    words = [*LENGTHS, *SCHEDULES[schedule]]
    whole, prolonged = place(tmp_path / "whole"), place(tmp_path / "prolonged")
    train([*words, f"max_steps={LONG}"], whole, world).ok()
    for number, steps in enumerate((SHORT, 40, 43, LONG)):
        train([*words, f"max_steps={steps}"], prolonged, world, name=f"io{number}").ok()
        assert rows(prolonged / "run")[-1]["step"] == summary(prolonged / "run")["step"] == steps
        assert {"train/loss", "eval/loss"} <= rows(prolonged / "run")[-1].keys(), "each end is evaluated and logged"
    same_bits(whole, prolonged)


def test_a_prolonged_run_keeps_the_best_of_before_its_old_end(tmp_path):
    """The evaluation at the old end is the best, and does not count: the checkpoint before it is still there."""
    words = [*LENGTHS, "scheduler=constant", "checkpoint.keep=1", "optimizer.lr=0.003"]
    directory = place(tmp_path)
    train([*words, f"max_steps={SHORT}"], directory).ok()
    found = summary(directory / "run")
    assert found["best_step"] == SHORT, "the run is no example"
    assert [path.name for path in sorted((directory / "run/checkpoints").glob("step_*"))] == [
        "step_00000030",
        "step_00000033",
    ]
    train([*words, f"max_steps={SHORT + 1}"], directory, name="io1").ok()
    assert [row["step"] for row in rows(directory / "run")][-2:] == [32, SHORT + 1]


def test_a_stopped_run_may_end_where_it_is(tmp_path):
    """Shortened to the step at which it was stopped: as a run of that length, whatever was due there before."""
    words = [*(word for word in RUN_FAULTY if not word.startswith(("epochs=", "scheduler"))), *PLATEAU, "epochs=1000"]
    for step, call in ((17, 68), (15, 65), (24, 100)):  # nothing is due, an evaluation is, a log line is
        short, stopped = (place(tmp_path / f"{name}{step}", FAULTY) for name in ("short", "stopped"))
        train([*words, f"max_steps={step}"], short).ok()
        train([*words, f"max_steps={LONG}"], stopped, environment={"FAULT": f"{call} {signal.SIGTERM:d}"}).ok()
        assert summary(stopped / "run")["step"] == step
        train([*words, f"max_steps={step}"], stopped, name="io1").ok()
        same_bits(short, stopped)


# --- Other rules for its evaluations -------------------------------------------------------------------------------


STOPPING = [*LENGTHS, *CONSTANT, f"max_steps={LONG}", "early_stopping.metric=eval/loss", "early_stopping.min_delta=0.1"]


def test_a_run_that_ended_early_goes_on_with_more_patience(tmp_path):
    """As one that had that patience from its start; with less it would have ended before, which is refused."""
    patient, early = place(tmp_path / "patient"), place(tmp_path / "early")
    train([*STOPPING, "early_stopping.patience=3"], patient).ok()
    train([*STOPPING, "early_stopping.patience=1"], early, name="io0").ok()
    first = summary(early / "run")
    assert "reason" in first and first["step"] < summary(patient / "run")["step"] < LONG
    for number, words in enumerate((["epochs=999"], ["epochs=1000"])):
        run = train([*STOPPING, "early_stopping.patience=1", *words], early, name=f"io{number + 1}").ok()
        assert "finished already" in run.out()
    assert summary(early / "run") == first
    train([*STOPPING, "early_stopping.patience=2"], early, name="io3").ok()
    train([*STOPPING, "early_stopping.patience=3"], early, name="io4").ok()
    same_bits(patient, early)
    said = refused([*STOPPING, "early_stopping.patience=1"], early)
    assert f"would have ended at step {first['step']}" in said and "early_stopping" in said
    whole = place(tmp_path / "whole")
    never = [word for word in STOPPING if not word.startswith("early_stopping")]
    train(never, whole).ok()
    train(never, early, name="io5").ok()
    for directory in (whole, early):  # the waiting is none of a run that does not wait
        assert "reason" not in summary(directory / "run")
    assert rows(whole / "run") == rows(early / "run")


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_another_best_is_that_of_all_evaluations(world, tmp_path):
    """Resumed with another metric for the best checkpoint: the best of the whole record, as if it had been so."""
    accuracy = ["checkpoint.best=eval/accuracy", "checkpoint.best_mode=max"]
    words = [word for word in RUN_FAULTY if not word.startswith("eval_every")] + ["eval_every=2", "checkpoint.keep=30"]
    calm, changed = place(tmp_path / "calm", FAULTY), place(tmp_path / "changed", FAULTY)
    train([*words, *accuracy], calm, world).ok()
    call = 100 if world == 1 else 60
    train(words, changed, world, environment={"FAULT": f"{call} {signal.SIGTERM:d}"}).ok()
    assert summary(changed / "run")["status"] == "stopped"
    train([*words, *accuracy], changed, world, name="io1").ok()
    same_bits(calm, changed)


def test_rules_cannot_be_changed_without_the_record(tmp_path):
    directory = place(tmp_path)
    words = [*STOPPING, "early_stopping.patience=1"]
    train(words, directory).ok()
    (directory / "run/metrics.jsonl").unlink()
    said = refused([*STOPPING, "early_stopping.patience=3"], directory)
    assert "metrics.jsonl" in said and "early_stopping" in said
    assert "finished already" in train(words, directory, name="io1").ok().out()


# --- What is there -------------------------------------------------------------------------------------------------

NAMES = "self, input_shape, num_outputs, hidden, activation, dropout"
FEW = [*(word for word in RUN if not word.startswith("epochs=")), "epochs=2"]
NEVER = ["checkpoint.every=null", "eval_every=null"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has finished, to be copied."""
    directory = place(tmp_path_factory.mktemp("finished"))
    train(FEW, directory).ok()
    return directory


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def as_if_killed_before_its_summary(directory):
    (directory / "run/summary.json").unlink()
    return directory


def test_data_of_another_kind_is_refused_in_a_sentence(copied):
    """More classes, fewer samples, other names: before a device, and in a finished run as in one that is not."""
    for old, new, expected in (
        ("classes=3", "classes=4", "num outputs: 3 then, 4 now"),
        ("n=60", "n=80", "train part: 60 samples then, 80 now"),
        ("part(30), part(30))", "part(30), part(30), list('abc'))", "class names: None then, ['a', 'b', 'c'] now"),
    ):
        edit(copied, old, new)
        for directory in (copied, as_if_killed_before_its_summary(copied)):
            said = refused(FEW, directory)
            assert expected in said and "not the data that the run in it has learned from" in said
        (copied / "own.py").write_text(OWN)
        train(FEW, copied, name="io-again").ok()


def test_a_model_whose_code_has_changed_is_refused_in_a_sentence(tmp_path):
    directory = place(tmp_path, FAULTY)
    words = [*(word for word in RUN_FAULTY if not word.startswith("epochs=")), "epochs=2"]
    train(words, directory).ok()
    (directory / "run/summary.json").unlink()
    body = "super().__init__(input_shape, num_outputs, [9], activation, dropout)"
    edit(directory, "calls = 0", f"calls = 0\n    def __init__({NAMES}):\n        {body}")
    said = refused(words, directory)
    assert "layers.1.weight is [9, 5] now and was [8, 5]" in said and "code has changed" in said


def test_a_run_without_its_config_is_not_taken_for_another(copied):
    shutil.rmtree(copied / "run/.hydra")
    for words in (FEW, [*FEW, "model.hidden=[5]"]):
        assert "not .hydra/config.yaml" in refused(words, copied)
    shutil.rmtree(copied / "run/checkpoints")
    assert "not .hydra/config.yaml" in refused(FEW, copied)
    (copied / "run/.hydra").mkdir()
    for text in ("", "model: [", "epochs: 3\n"):
        (copied / "run/.hydra/config.yaml").write_text(text)
        said = refused(FEW, copied)
        assert "config.yaml" in said and ("cannot be read" in said or "does not hold" in said)


def test_a_finished_run_without_its_checkpoints_stays_as_it_is(copied):
    shutil.rmtree(copied / "run/checkpoints")
    before = (copied / "run/summary.json").read_bytes()
    out = train(FEW, copied).ok().out()
    assert "finished already" in out and "checkpoints have been removed" in out
    assert (copied / "run/summary.json").read_bytes() == before and not (copied / "run/checkpoints").exists()
    longer = [*(word for word in FEW if not word.startswith(("epochs=", "scheduler"))), "epochs=4"]
    said = refused([*longer, "scheduler=constant"], copied)
    assert "belongs to a run with another config" in said
    stopped = json.loads(before) | {"status": "stopped"}
    (copied / "run/summary.json").write_text(json.dumps(stopped))
    assert "its checkpoints are not there any more" in refused(FEW, copied)


def test_a_longer_run_without_its_checkpoints_is_refused(tmp_path):
    directory = place(tmp_path)
    words = [*(word for word in FEW if not word.startswith(("epochs=", "scheduler"))), "scheduler=constant"]
    train([*words, "epochs=2"], directory).ok()
    shutil.rmtree(directory / "run/checkpoints")
    said = refused([*words, "epochs=3"], directory)
    assert "has done 10 updates, and its checkpoints are not there any more" in said


# --- Data in another place -----------------------------------------------------------------------------------------

TABLE = ["data=csv", "data.target=y", "model.hidden=[4]", "threads=1", "epochs=4", "log_every=3", "hydra.run.dir=run"]


def write_table(file, rows=80, shift=0.0):
    lines = [f"{(i * 7) % 13},{(i * 3) % 5 + shift},{i % 2}" for i in range(rows)]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(["a,b,y", *lines]) + "\n")


def test_data_that_was_moved_is_the_same_and_other_data_is_not(tmp_path):
    write_table(tmp_path / "old/table.csv")
    train([*TABLE, "data.path=old/table.csv", "hydra.run.dir=calm"], tmp_path).ok()
    train([*TABLE, "data.path=old/table.csv"], tmp_path).ok()
    (tmp_path / "run/summary.json").unlink()
    newest_ = max((tmp_path / "run/checkpoints").glob("step_*"))
    shutil.rmtree(newest_)
    (tmp_path / "old").rename(tmp_path / "new")
    assert "old/table.csv" in refused([*TABLE, "data.path=old/table.csv"], tmp_path)
    for number, (arguments, expected) in enumerate([
        ((80, 0.5), "input mean"),
        ((90, 0.0), "train part: 58 samples then, 65 now"),
    ]):  # fmt: skip
        write_table(tmp_path / f"other{number}/table.csv", *arguments)
        said = refused([*TABLE, f"data.path=other{number}/table.csv"], tmp_path)
        assert f"data.path: old/table.csv -> other{number}/table.csv" in said and expected in said
    said = refused([*TABLE, "data.path=new/table.csv", "data.split_seed=1"], tmp_path)
    assert "data.split_seed: 0 -> 1" in said
    out = train([*TABLE, f"data.path={tmp_path}/new/table.csv"], tmp_path, name="io1").ok().out()
    assert "moved data.path: old/table.csv -> " in out and "these are the same samples" in out
    assert rows(tmp_path / "run") == rows(tmp_path / "calm")
    assert "finished already" in train([*TABLE, "data.path=new/table.csv"], tmp_path, name="io2").ok().out()


def test_a_relative_path_from_another_working_directory(tmp_path):
    """The same words lead to another file: it is that, or the run is told that it is not."""
    write_table(tmp_path / "here/table.csv")
    write_table(tmp_path / "there/table.csv", rows=90)
    run = f"hydra.run.dir={tmp_path}/run"
    words = [*TABLE[:-1], "data.path=table.csv", run]
    train(words, tmp_path / "here").ok()
    (tmp_path / "run/summary.json").unlink()
    again = train(words, tmp_path / "there").wait()
    assert again.status == [2] and "train part: 58 samples then, 65 now" in again.err()
    (tmp_path / "there/table.csv").unlink()
    again = train(words, tmp_path / "there").wait()
    assert again.status == [2] and "data.path" in again.err()
    out = train([*TABLE[:-1], "data.path=../here/table.csv", run], tmp_path / "there").ok().out()
    assert "finished" in out and "moved data.path: table.csv -> ../here/table.csv" in out


def test_images_that_were_moved(tmp_path):
    """A copy of the folder is the same; one with the same classes and counts and other pictures is not."""
    from PIL import Image

    for part, count in (("train", 12), ("test", 4), ("validation", 4)):
        for label in ("ant", "bee"):
            folder = tmp_path / "old" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (12, 10), (i * 9, 99, 200 * (label == "ant"))).save(folder / f"{i}.png")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    shutil.copytree(tmp_path / "old", tmp_path / "other")
    for file in (tmp_path / "other").rglob("*.png"):
        Image.open(file).resize((24, 20)).convert("L").save(file)
    words = ["data=image_folder", "data.image_size=8", "model=cnn", "model.channels=[4]", "threads=1", "epochs=1",
             "num_workers=0", "batch.global_size=8", "hydra.run.dir=run"]  # fmt: skip
    train([*words, "data.root=old"], tmp_path).ok()
    assert "finished already" in train([*words, "data.root=new"], tmp_path, name="io1").ok().out()
    said = refused([*words, "data.root=other"], tmp_path)
    assert "train part: as many samples, of other contents" in said


def test_a_directory_that_rank_0_refuses_is_refused_by_every_rank(tmp_path):
    """Nobody else would tell ranks that were started by hand: they would wait for the process group."""
    directory = place(tmp_path)
    train(FEW, directory).ok()
    run = train([*FEW, "optimizer.lr=0.3", "timeout=60"], directory, world=3, name="io1").wait(30)
    assert run.status == [2, 2, 2]
    for rank in range(3):
        assert run.err(rank).startswith("error: hydra.run.dir=") and "optimizer.lr" in run.err(rank)


# --- A directory that other nodes do not see -----------------------------------------------------------------------


def _one_rank_is_elsewhere(blind, hidden, argv, directory):
    """The training program; a rank has a file system of its own at `hidden`, as a node that does not share it."""
    if os.environ["RANK"] == str(blind):
        libc, new_namespace, new_user = ctypes.CDLL(None, use_errno=True), 0x20000, 0x10000000
        if libc.unshare(new_namespace | (new_user if os.getuid() else 0)):
            os._exit(77)  # not allowed here
        recursive, private = 0x4000, 1 << 18
        assert libc.mount(b"none", b"/", None, recursive | private, None) == 0
        assert libc.mount(b"tmpfs", os.fsencode(hidden), b"tmpfs", 0, None) == 0
    shared.SECONDS = 0.5
    processes._command("train", argv, directory, False)


def elsewhere(words, directory, name, blind=1):
    arguments = (blind, directory / "shared", [*words, "wandb.mode=disabled"], directory)
    run = processes.start(_one_rank_is_elsewhere, arguments, directory / name, world=3).wait(60)
    if 77 in run.status:
        pytest.skip("no mount namespace of one's own here")
    return run


@pytest.mark.soak
def test_a_node_that_does_not_see_the_directory(tmp_path):
    """A run can begin so, and is told that it cannot go on; when it is to, every rank is refused with the reason."""
    directory = place(tmp_path)
    (directory / "shared").mkdir()
    words = [word for word in FEW if not word.startswith(("hydra.run.dir", "scheduler"))]
    words += ["scheduler=constant", "hydra.run.dir=shared/run"]
    run = elsewhere(words, directory, "begun")
    assert run.status == [0, 0, 0], run.err()
    (line,) = [line for line in run.out().splitlines() if "cannot see" in line]
    host, path = socket.gethostname(), directory / "shared/run"
    assert f"hydra.run.dir={path}: rank 1 on {host} cannot see this directory of rank 0 on {host}." in line
    assert not list(path.glob(".seen-*"))
    other = place(tmp_path / "other")
    (other / "shared").mkdir()
    train(words, other, world=3).ok()
    last = max(path.glob("checkpoints/step_*/model.safetensors"))
    assert (other / last.relative_to(directory)).read_bytes() == last.read_bytes()

    longer = [word.replace("epochs=", "epochs=1") for word in words]
    run = elsewhere(longer, directory, "resumed")
    assert run.status == [2, 2, 2], run.err()
    for rank in range(3):
        assert run.err(rank).startswith(f"error: hydra.run.dir={path}: rank 1 on {host} cannot see this directory")
        assert "every rank reads the checkpoint" in run.err(rank)
    assert not list(path.glob(".seen-*"))
    out = train(longer, directory, world=3, name="shared_by_all").ok().out()
    assert "resumed" in out and "cannot see" not in out


def test_ranks_that_do_not_see_a_directory_are_counted(tmp_path):
    (note,) = shared.judge(tmp_path, False, [("n1", True), ("n1", True), ("n2", False), ("n2", False)])
    assert "rank 2 on n2 and 1 more cannot see this directory of rank 0 on n1" in note
    assert shared.judge(tmp_path, False, [("n1", True), ("n2", True)]) == ()


def test_a_file_that_comes_late_is_seen(tmp_path):
    threading.Timer(0.3, lambda: ((tmp_path / "new").mkdir(), (tmp_path / "new/file").touch())).start()
    assert shared.sees(tmp_path / "new/file", 5)
    assert not shared.sees(tmp_path / "new/other", 0.2)


# --- A first start that failed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rollback", [pytest.param([], marks=pytest.mark.soak), ["divergence.action=rollback"]])
def test_what_failed_before_it_saved_anything_makes_room_for_the_corrected_command(rollback, tmp_path):
    """A first start diverges at once: the corrected one begins anew in its directory, and nothing is lost."""
    directory, calm = place(tmp_path / "failed"), place(tmp_path / "calm")
    words = [word for word in FEW if not word.startswith(("optimizer", "checkpoint.every", "log_every", "eval_every"))]
    words += ["checkpoint.every=null", "log_every=1", "eval_every=null", "trackers=[csv]"]
    failed = train([*words, "optimizer=sgd", "optimizer.lr=1e30", *rollback], directory).wait()
    assert failed.status == [1] and "diverged" in failed.err()
    before = {name: (directory / "run" / name).read_bytes() for name in ("train.log", "metrics.jsonl", "data.json")}
    config = (directory / "run/.hydra/config.yaml").read_bytes()
    edit(directory, "classes=3", "classes=4")
    edit(calm, "classes=3", "classes=4")
    right = [*words, "optimizer=adamw", "optimizer.lr=0.01"]
    out = train(right, directory, name="io1").ok().out()
    assert "had saved nothing, see earlier-1" in out
    train(right, calm).ok()
    same_bits(calm, directory)
    earlier = directory / "run/earlier-1"
    assert {name: (earlier / name).read_bytes() for name in before} == before
    assert (earlier / "hydra/config.yaml").read_bytes() == config
    assert json.loads((directory / "run/data.json").read_text())["num_outputs"] == 4
    assert "diverged" not in (directory / "run/train.log").read_text()
    # A comparison of run directories takes it for no run of its own.
    said = processes.command("compare", ["."], directory, name="io2").ok().out()
    assert "earlier" not in said
    assert "optimizer.lr" in refused([*words, "optimizer=adamw", "optimizer.lr=0.02"], directory), (
        "there is something now"
    )


def test_the_same_command_again_begins_again_and_says_so(tmp_path):
    directory = place(tmp_path, FAULTY)
    words = [*RUN_FAULTY, "checkpoint.every=null", "eval_every=null"]
    assert train(words, directory, environment={"FAULT": f"100 {signal.SIGKILL:d}"}).wait().status == [-signal.SIGKILL]
    assert len(rows(directory / "run")) > 3
    out = train(words, directory, name="io1").ok().out()
    assert "nothing was saved before: it begins again" in out and not list((directory / "run").glob("earlier*"))
    assert [row["step"] for row in rows(directory / "run")] == [*range(4, 61, 4)]


def test_room_is_made_once_whatever_is_killed_meanwhile(tmp_path, monkeypatch):
    """Killed after each of its renames, the next start goes on to make room; no file is lost."""
    from launcher.run import run_directory

    names = [".hydra/config.yaml", "metrics.jsonl", "train.log", "data.json", "provenance.json", "timings.jsonl"]
    path = tmp_path / "run"
    (path / ".hydra").mkdir(parents=True)
    for name in names:
        (path / name).write_text(name)
    rename = os.rename
    for _ in names:
        done = []

        def killed(source, target, done=done):
            if done:
                raise KeyboardInterrupt
            done.append(rename(source, target))

        monkeypatch.setattr(os, "rename", killed)
        try:
            run_directory._make_room(path)
        except KeyboardInterrupt:
            assert (path / ".hydra/config.yaml").exists(), "until the end the next start sees what is to be set aside"
            continue
        break
    kept = {file.name: file.read_text() for file in path.rglob("*") if file.is_file()}
    assert kept == {Path(name).name: name for name in names} and not (path / ".hydra").exists()


# --- What others have done to it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "metrics.jsonl", "train.log", ".lock", "checkpoints", ".hydra"])
def test_what_one_may_not_write_is_a_sentence(name, copied):
    as_if_killed_before_its_summary(copied)
    target = copied / "run" / name
    mode = target.stat().st_mode
    target.chmod(0o555 if target.is_dir() else 0o444)
    words = ("train", [*FEW, "wandb.mode=disabled"], copied)
    run = processes.start(processes.without_privileges, words, copied / "io-refused").wait()
    assert run.status == [2] and "Traceback" not in run.err(), run.err()
    assert "no permission to write" in run.err() and (name == "." or name in run.err())
    target.chmod(mode)
    assert "finished" in processes.start(processes.without_privileges, words, copied / "io-right").ok().out()


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("removed", "edited", "a row removed", "lengthened")),
    ],
)
def test_a_record_that_was_changed_is_said_and_the_run_goes_on(damage, tmp_path):
    calm, directory = place(tmp_path / "calm", FAULTY), place(tmp_path / "damaged", FAULTY)
    train(RUN_FAULTY, calm).ok()
    train(RUN_FAULTY, directory, environment={"FAULT": f"100 {signal.SIGTERM:d}"}).ok()
    file = directory / "run/metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    if damage == "removed":
        file.unlink()
    else:
        file.write_text("".join({
            "truncated": lines[:2], "edited": [lines[0].replace("loss", "lost"), *lines[1:]],
            "a row removed": lines[:1] + lines[2:], "lengthened": [*lines, '{"step": 59, "epoch": 9.0}\n', '{"st'],
        }[damage]))  # fmt: skip
    (directory / "run/timings.jsonl").unlink()
    (directory / "run/train.log").unlink()
    out = train(RUN_FAULTY, directory, name="io1").ok().out()
    assert ("metrics.jsonl has been changed" in out) == (damage != "lengthened")
    steps = [row["step"] for row in rows(directory / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == 60
    assert rows(directory / "run")[-5:] == rows(calm / "run")[-5:]
    if damage == "lengthened":
        same_bits(calm, directory)
    assert "finished" in (directory / "run/train.log").read_text()


@pytest.mark.parametrize("damage", ["removed", "cut short", "empty"])
def test_a_summary_that_is_gone_is_measured_again(damage, copied, finished):
    file = copied / "run/summary.json"
    whole = file.read_text()
    if damage == "removed":
        file.unlink()
    else:
        file.write_text(whole[: len(whole) // 2] if damage == "cut short" else "")
    train(FEW, copied).ok()
    same_bits(finished, copied)
    assert {k: v for k, v in summary(copied / "run").items() if k in ("status", "step", "best_step")} == {
        k: v for k, v in json.loads(whole).items() if k in ("status", "step", "best_step")
    }


def test_a_directory_that_was_renamed_copied_or_linked_goes_on(tmp_path):
    calm, directory = place(tmp_path / "calm", FAULTY), place(tmp_path / "moved", FAULTY)
    train(RUN_FAULTY, calm).ok()
    train(RUN_FAULTY, directory, environment={"FAULT": f"60 {signal.SIGTERM:d}"}).ok()
    shutil.copytree(directory / "run", tmp_path / "elsewhere/copy", symlinks=True)
    (directory / "run").rename(tmp_path / "elsewhere/renamed")
    (directory / "linked").symlink_to(tmp_path / "elsewhere/renamed")
    words = [word for word in RUN_FAULTY if not word.startswith("hydra.run.dir")]
    for name, where in (("linked", "linked"), ("copy", tmp_path / "elsewhere/copy")):
        run = train([*words, f"hydra.run.dir={where}"], directory, name=f"io-{name}").ok()
        assert "resume     from step_" in run.out()
        shutil.rmtree(directory / "run", ignore_errors=True)
        found = tmp_path / "elsewhere" / ("renamed" if name == "linked" else "copy")
        shutil.copytree(found, directory / "run")
        same_bits(calm, directory)


def test_two_starts_at_once_are_one_run(tmp_path):
    """Of two that begin in the same moment in the same place one trains, and the other says who does."""
    for attempt in range(3):
        directory = place(tmp_path / str(attempt))
        runs = [train(FEW, directory, name=f"io{number}") for number in range(2)]
        statuses = sorted(run.wait().status[0] for run in runs)
        said = "".join(run.err() + run.out() for run in runs)
        assert (statuses == [0, 2] and "a run is in it" in said) or (
            statuses == [0, 0] and "finished already" in said
        ), said
        assert [row["step"] for row in rows(directory / "run")] == [4, 5, 8, 10]


def test_checkpoints_that_are_all_damaged_are_not_begun_over(copied):
    shutil.rmtree(copied / "run/checkpoints")
    (copied / "run/checkpoints/.damaged-step_00000010").mkdir(parents=True)
    (copied / "run/summary.json").unlink()
    assert "checkpoints are not there any more" in refused(FEW, copied)
    assert "optimizer.lr" in refused([*FEW, "optimizer.lr=0.5"], copied)


@pytest.mark.parametrize("keep", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_another_number_of_checkpoints_is_kept_from_then_on(keep, tmp_path):
    directory = place(tmp_path, FAULTY)
    calm = place(tmp_path / "calm", FAULTY)
    train([*RUN_FAULTY, f"checkpoint.keep={keep}"], calm).ok()
    train([*RUN_FAULTY, "checkpoint.keep=3"], directory, environment={"FAULT": f"150 {signal.SIGTERM:d}"}).ok()
    train([*RUN_FAULTY, f"checkpoint.keep={keep}"], directory, name="io1").ok()
    same_bits(calm, directory)
    steps = [int(path.name[5:]) for path in sorted((directory / "run/checkpoints").glob("step_*"))]
    best = summary(directory / "run")["best_step"]
    assert len([step for step in steps if step != best]) <= keep and {60, best} <= set(steps)
