"""The record of what a run was made by, and runs repeated from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_loop import OWN, RUN, place, same_bits
from processes import REPOSITORY, command, train
from safetensors.torch import load_file

from launcher.core.errors import ConfigError
from launcher.run import provenance


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run on 1 and on 2 ranks, in a repository with a change that is not committed."""
    found = {}
    for world in (1, 2):
        found[world] = place(tmp_path_factory.mktemp(f"original{world}"), "# mine\n" + OWN)
        _commit(found[world])
        (found[world] / "own.py").write_text("# mine, changed\n" + OWN)
        environment = {"NCCL_DEBUG": "WARN", "WANDB_API_KEY": "k" * 40, "PRIVATE": "p" * 40,
                       "WANDB_BASE_URL": "http://me:hush@127.0.0.1:9"}  # fmt: skip
        train([*RUN, "+data.classes=3"], found[world], world, environment).ok()
    return found


def _git(directory, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *words], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _commit(directory):
    _git(directory, "init", "-q")
    _git(directory, "add", "own.py")
    _git(directory, "commit", "-qm", "first")


@pytest.fixture
def copied(original, tmp_path):
    """The working directory of the run on one rank, to do with as one likes."""
    shutil.copytree(original[1], tmp_path / "there", symlinks=True)
    return tmp_path / "there"


def test_the_record_says_what_a_run_was_made_by(original):
    record = json.loads((original[1] / "run/provenance.json").read_text())
    tree = record["code"]["working directory"]
    assert tree["commit"] == _git(original[1], "rev-parse", "HEAD")
    assert record["code"]["launcher"]["commit"] == _git(Path(provenance.__file__).parents[1], "rev-parse", "HEAD")
    assert record["packages"]["torch"] == torch.__version__ or record["packages"]["torch"] in torch.__version__
    assert "epochs=12" in record["command"] and "train.py" in record["command"]
    assert (record["devices"], record["device"], record["threads"]) == (1, "CPU", 1)
    assert list(record["sources"]) == ["own.py"]
    # The kept changes, applied to the commit, give the file that ran.
    clone = original[1] / "clone"
    _git(original[1], "clone", "-q", ".", "clone")
    assert (clone / "own.py").read_text() == "# mine\n" + OWN
    _git(clone, "apply", str(original[1] / f"run/changes-{tree['changes'][:12]}.patch"))
    assert (clone / "own.py").read_text() == "# mine, changed\n" + OWN
    shutil.rmtree(clone)


def test_no_secret_gets_into_the_record(original):
    for file in (original[1] / "run").rglob("*"):
        if file.is_file():
            assert not any(secret in file.read_bytes() for secret in (b"k" * 40, b"p" * 40, b"hush")), file
    kept = json.loads((original[1] / "run/provenance.json").read_text())["environment"]
    assert kept["NCCL_DEBUG"] == "WARN" and kept["WANDB_API_KEY"] == "***" and "PRIVATE" not in kept
    assert kept["WANDB_BASE_URL"] == "http://***@127.0.0.1:9"
    words = ["train.py", "+hub.token=abc", "+my.password=x", "optimizer.lr=0.1", "a=http://u:p@h"]
    assert provenance.masked_words(words) == [
        "train.py", "+hub.token=***", "+my.password=***", "optimizer.lr=0.1", "a=http://***@h",
    ]  # fmt: skip


def test_changes_too_large_are_left_out(tmp_path):
    place(tmp_path)
    _commit(tmp_path)
    (tmp_path / "own.py").write_text("\n".join(map(str, range(300_000))))
    assert len(provenance.changes(tmp_path)) == provenance.LARGEST_PATCH + 1
    assert provenance.changes(tmp_path / "nowhere") == b""


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_repeated_has_the_same_bits(world, original):
    directory = original[world]
    environment = {"NCCL_DEBUG": "WARN"}
    again = command("rerun", ["run"], directory, world, environment, name=f"io-rerun{world}").ok()
    assert "same       " in again.out() and "differs" not in again.out(), again.out()
    assert (directory / "run-rerun").is_dir()
    (directory / "again").mkdir()
    (directory / "run-rerun").rename(directory / "again/run")
    same_bits(directory, directory / "again")
    shutil.rmtree(directory / "again")


@pytest.mark.soak
def test_each_repetition_has_a_directory_of_its_own(copied):
    for words in (["run"], ["run"], ["run", "output=mine"]):
        command("rerun", words, copied).ok()
    names = sorted(path.name for path in copied.iterdir() if (path / "metrics.jsonl").exists())
    assert names == ["mine", "run", "run-rerun", "run-rerun_1"]
    resumed = command("rerun", ["run", "output=mine"], copied).ok()
    assert "finished already" in resumed.out()
    (copied / "grid").mkdir()
    (copied / "grid/grid.json").write_text("{}")
    (copied / "run").rename(copied / "grid/seed=1")
    command("rerun", ["run_dir='grid/seed=1'"], copied).ok()
    assert (copied / "grid-seed=1-rerun/metrics.jsonl").exists()  # not a trial that nobody asked for


def test_it_says_in_words_what_differs(copied):
    record = json.loads((copied / "run/provenance.json").read_text())
    record["code"]["working directory"]["commit"] = "f" * 40
    record["packages"]["torch"] = "1.0.0"
    record["packages"]["long-gone"] = "3"
    record["devices"] = 8
    (copied / "run/provenance.json").write_text(json.dumps(record))
    data = json.loads((copied / "run/data.json").read_text())
    data["parts"]["train"]["samples"] += 1
    data["parts"]["test"]["checksum"] += 1
    (copied / "run/data.json").write_text(json.dumps(data))
    (copied / "own.py").write_text(OWN)
    before = sorted(path for path in copied.rglob("*") if "io" not in path.parts and ".git" not in path.parts)
    said = command("rerun", ["run", "dry_run=true"], copied, environment={"NCCL_DEBUG": "INFO"}).ok().out()
    for text in (
        f"commit of the working directory: {'f' * 12} then, {_git(copied, 'rev-parse', 'HEAD')[:12]} now",
        "uncommitted changes in the working directory: those of changes-",
        "torch 1.0.0 then", "long-gone 3 then, absent now", "number of devices: 8 then, 1 now",
        "NCCL_DEBUG: WARN then, INFO now", "own.py: has changed",
        "data, train part: 61 samples then, 60 now", "data, test part: as many samples, of other contents",
    ):  # fmt: skip
        assert f"{text}" in said, f"{text}\n{said}"
    assert "same " not in said
    assert sorted(p for p in copied.rglob("*") if "io" not in p.parts and ".git" not in p.parts) == before


def test_a_run_without_its_record_or_data_is_refused(copied):
    (copied / "own.py").unlink()
    run = command("rerun", ["run", "dry_run=true"], copied).wait()
    assert run.status == [2] and "own" in run.err()
    (copied / "run/provenance.json").unlink()
    with pytest.raises(ConfigError, match=r"provenance\.json cannot be read"):
        provenance.read(copied / "run")


def test_a_setting_that_a_run_did_not_know_gets_its_default(copied):
    config = copied / "run/.hydra/config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith(("channels_last:", "  tables:"))))
    said = command("rerun", ["run", "output=again"], copied).ok().out()
    assert "channels_last: no such setting then, False now" in said
    assert "wandb.tables: no such setting then, 0 now" in said


def test_a_resumed_run_keeps_its_first_record(copied):
    first = json.loads((copied / "run/provenance.json").read_text())
    own = (copied / "own.py").read_text()
    (copied / "own.py").write_text(own.replace("manual_seed(0)", "manual_seed(1)"))
    (copied / "run/summary.json").unlink()  # as if it had been killed just before its end
    out = train([*RUN, "+data.classes=3"], copied, environment={"OMP_PLACES": "cores"}).ok().out()
    assert "changed    data, train part" in out
    record = json.loads((copied / "run/provenance.json").read_text())
    (later,) = record.pop("later_starts")
    assert record == first
    assert "code" in later and "packages" not in later
    assert later["environment"]["OMP_PLACES"] == "cores"
    assert os.path.exists(copied / f"run/changes-{later['code']['working directory']['changes'][:12]}.patch")


@pytest.mark.soak  # a minute: eight processes that import torch anew, from the clone
def test_what_differs_from_an_earlier_commit_is_said(tmp_path):
    """In a clone of this repository that a person works in: their commits and changes are real ones."""
    clone = tmp_path / "clone"
    _git(REPOSITORY, "clone", "-q", "--no-hardlinks", str(REPOSITORY), str(clone))
    uncommitted = subprocess.run(["git", "diff", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    if uncommitted:  # what is tested is the code as it stands
        subprocess.run(["git", "apply"], cwd=clone, input=uncommitted, check=True)
        _git(clone, "commit", "-qam", "as it stands")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    site = str(Path(torch.__file__).parents[1])

    def tell(program, *words, more=site):
        line = [sys.executable, "-m", "launcher", program, *words]
        variables = environment | {"PYTHONPATH": f"{clone}{os.pathsep}{more}", "WANDB_MODE": "disabled"}
        done = subprocess.run(line, cwd=clone, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tell("train", "threads=1", "device=cpu", "epochs=2", "hydra.run.dir=outputs/run")
    before = _git(clone, "rev-parse", "HEAD")
    said = tell("rerun", "outputs/run")
    assert "same       code, packages, devices and data" in said and "\ndiffers" not in said, said
    one, two = (load_weights(clone / "outputs" / name) for name in ("run", "run-rerun"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    # A change that is not committed, and is kept with the run that was made by it.
    file = clone / "launcher/models/mlp.py"
    file.write_text(file.read_text().replace("nn.Linear(", "nn.Linear(  # mine\n"))
    said = tell("rerun", "outputs/run", "dry_run=true")
    assert "uncommitted changes in the working directory: none then, some now" in said, said
    tell("train", "threads=1", "device=cpu", "max_steps=3", "hydra.run.dir=outputs/changed")
    _git(clone, "commit", "-qam", "mine")
    after = _git(clone, "rev-parse", "HEAD")
    said = tell("rerun", "outputs/changed", "dry_run=true")
    assert f"commit of the working directory: {before[:12]} then, {after[:12]} now" in said, said
    (patch,) = (clone / "outputs/changed").glob("changes-*.patch")
    assert f"those of {patch.name} then, none now" in said, said
    _git(clone, "checkout", "-q", before)
    _git(clone, "apply", str(patch))
    said = tell("rerun", "outputs/changed", "dry_run=true")
    assert "same       code" in said and "differs" not in said, said

    # Another commit, and a package more.
    _git(clone, "checkout", "-qf", after)
    (tmp_path / "more/mine-1.5.dist-info").mkdir(parents=True)
    said = tell("rerun", "outputs/run", "dry_run=true", more=os.pathsep.join([site, str(tmp_path / "more")]))
    assert f"commit of the working directory: {before[:12]} then, {after[:12]} now" in said, said
    assert "packages: mine absent then, 1.5 now" in said and "same " not in said, said


def load_weights(directory):
    newest = max((directory / "checkpoints").glob("step_*"))
    return load_file(newest / "model.safetensors")
