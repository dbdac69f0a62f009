"""Checkpoints under attack: interrupted writes, damaged files, a full disk, a planted pickle."""

import os
import pickle
import random
import shutil

import pytest
import torch

from launcher.training import checkpoint
from launcher.training.checkpoint import DamagedCheckpoint, newest_good, read_checkpoint, verify, write_checkpoint

pytestmark = pytest.mark.versions

MODEL = {"weight": torch.arange(12.0).view(3, 4), "tied": torch.ones(5)}
STATE = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "progress": {"step": 3, "best_step": None}}


def write(directory, step, scale=1.0):
    return write_checkpoint(directory, step, {name: value * scale for name, value in MODEL.items()}, STATE)


def test_what_is_written_is_read(tmp_path):
    model, state = read_checkpoint(write(tmp_path, 3))
    assert all(torch.equal(model[name], MODEL[name]) for name in MODEL) and state["progress"] == STATE["progress"]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


POINTS = ["save_file", "torch.save", "os.fsync", "os.rename", "shutil.rmtree"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("call", range(6))
def test_a_save_that_is_killed_at_any_point_loses_nothing(point, call, tmp_path):
    """A forked process saves steps 2 (again) and 3 and kills itself at the n-th call of a writing function."""
    write(tmp_path, 1), write(tmp_path, 2)
    child = os.fork()
    if child == 0:
        owner, _, name = point.rpartition(".")
        module = {"": checkpoint, "torch": torch, "os": os, "shutil": shutil}[owner]
        real, count = getattr(module, name), iter(range(1000))

        def deadly(*arguments, **more):
            if next(count) == call:
                os._exit(9)
            return real(*arguments, **more)

        setattr(module, name, deadly)
        write(tmp_path, 2, 2.0), write(tmp_path, 3, 3.0)
        checkpoint.prune(tmp_path, keep=1, best=())
        os._exit(0)
    os.waitpid(child, 0)
    checkpoint.restore_replaced(tmp_path)  # as a start does
    found = newest_good(tmp_path)
    assert found is not None and checkpoint.step_of(found) >= 2
    scale = read_checkpoint(found)[0]["tied"][0].item()
    assert scale in {2: (1.0, 2.0), 3: (3.0,)}[checkpoint.step_of(found)]
    write(tmp_path, 4, 4.0)
    assert newest_good(tmp_path).name == "step_00000004"
    assert not list(tmp_path.glob(".making-*")), "what the killed one left is cleared away"


@pytest.mark.parametrize("seed", range(30))
def test_damage_is_found_and_the_one_before_is_used(seed, tmp_path, caplog):
    choose = random.Random(seed)
    write(tmp_path, 1, 1.0), write(tmp_path, 2, 2.0)
    victim = choose.choice(sorted((tmp_path / "step_00000002").iterdir()))
    content = bytearray(victim.read_bytes())
    damage = choose.choice(["truncate", "flip", "remove", "append", "zero"])
    if damage == "remove":
        victim.unlink()
    else:
        at = choose.randrange(len(content))
        if damage == "truncate":
            del content[at:]
        elif damage == "flip":
            content[at] ^= 1 << choose.randrange(8)
        elif damage == "append":
            content += b"\0"
        else:
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        if bytes(content) == victim.read_bytes():
            pytest.skip("zeros over zeros are no damage")
        victim.write_bytes(content)
    found = newest_good(tmp_path)
    if victim.name == "manifest.json" and found.name == "step_00000002":
        verify(found)  # a flipped bit in the manifest's white space changes nothing that it says
        assert read_checkpoint(found)[0]["tied"][0] == 2.0
        return
    assert found.name == "step_00000001" and read_checkpoint(found)[0]["tied"][0] == 1.0
    assert "DAMAGED CHECKPOINT" in caplog.text and "step_00000002" in caplog.text


def test_with_no_good_one_left_it_stops_rather_than_starting_over(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "step_00000001/state.pt").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="every checkpoint"):
        newest_good(tmp_path)
    assert newest_good(tmp_path / "none") is None


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_planted_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = write(tmp_path / "checkpoints", 1)
    torch.save({"progress": Trap()}, found / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(found)
    (found / "state.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RuntimeError, match="mmap can only be used with"):
        read_checkpoint(found)
    assert not (tmp_path / "trapped").exists()


def test_the_best_and_the_newest_are_kept(tmp_path):
    for step in range(1, 8):
        write(tmp_path, step)
        checkpoint.prune(tmp_path, keep=2, best=(3,))
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [3, 6, 7]


def test_damaged_checkpoints_do_not_take_the_place_of_new_ones(tmp_path):
    for step in (1, 2, 8, 9):
        write(tmp_path, step)
    for step in (8, 9):
        (tmp_path / f"step_{step:08d}/state.pt").write_bytes(b"")
    assert checkpoint.resolve_resume_checkpoint(tmp_path).name == "step_00000002"
    for step in (3, 4, 5):
        write(tmp_path, step)
        checkpoint.prune(tmp_path, keep=2, best=())
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [4, 5]
    assert (tmp_path / ".damaged-step_00000009").is_dir() and (tmp_path / ".damaged-step_00000008").is_dir()
    assert checkpoint.resolve_resume_checkpoint(tmp_path).name == "step_00000005"


def scored(directory, step, best):
    """A checkpoint whose run had its best evaluation at a step."""
    return write_checkpoint(directory, step, MODEL, {"progress": {"step": step, "best_step": best}})


def test_the_link_names_the_best_and_is_listed_nowhere(tmp_path):
    link = tmp_path / "best"
    checkpoint.link_best(tmp_path, scored(tmp_path, 1, None), None)
    assert not link.is_symlink(), "none was measured"
    for step, best, named in ((2, 2, 2), (3, 2, 2), (4, 4, 4), (5, 77, 5)):  # that of step 77 was not saved
        newest = scored(tmp_path, step, best)
        checkpoint.link_best(tmp_path, newest, best)
        assert os.readlink(link) == f"step_{named:08d}", "relative, so that a run may be moved"
        assert link.resolve() == checkpoint.best_of(newest).resolve()
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [1, 2, 3, 4, 5]
    assert newest_good(tmp_path).name == "step_00000005"
    checkpoint.link_best(tmp_path, newest, None)
    assert not link.is_symlink()


def test_the_link_follows_a_run_that_goes_back(tmp_path):
    """The newest and best is damaged, and set aside: the best is what the one before it says."""
    scored(tmp_path, 1, 1), scored(tmp_path, 2, 1)
    checkpoint.link_best(tmp_path, scored(tmp_path, 3, 3), 3)
    (tmp_path / "step_00000003/state.pt").write_bytes(b"")
    assert checkpoint.resolve_resume_checkpoint(tmp_path).name == "step_00000002"
    assert os.readlink(tmp_path / "best") == "step_00000001"
    for path in (*checkpoint.checkpoints(tmp_path), tmp_path / ".damaged-step_00000003"):
        shutil.rmtree(path)
    assert checkpoint.resolve_resume_checkpoint(tmp_path) is None and not (tmp_path / "best").is_symlink()


def test_a_copy_in_the_place_of_the_link_becomes_a_link_again(tmp_path):
    checkpoint.link_best(tmp_path / "run", scored(tmp_path / "run", 1, 1), 1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # follows links
    assert not (tmp_path / "copy/best").is_symlink()
    (tmp_path / "copy/.best.new").symlink_to("step_00000009")  # of a process that was killed
    checkpoint.resolve_resume_checkpoint(tmp_path / "copy")
    assert os.readlink(tmp_path / "copy/best") == "step_00000001" and not (tmp_path / "copy/.best.new").is_symlink()
    other = tmp_path / "other"
    (other / "best").mkdir(parents=True)
    (other / "best/mine").touch()
    scored(other, 1, 1)
    assert checkpoint.resolve_resume_checkpoint(other).name == "step_00000001", "a person's own is left alone"
    assert (other / "best/mine").exists()
