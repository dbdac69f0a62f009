"""Checkpoints under attack: interrupted writes, damaged files, a full disk, a planted pickle."""

import contextlib
import gc
import math
import os
import pickle
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from launcher.run.tracking import Record
from launcher.training import checkpoint
from launcher.training.checkpoint import (
    DamagedCheckpoint,
    Saver,
    newest_good,
    read_checkpoint,
    verify,
    write_checkpoint,
)
from launcher.training.staging import Staging, own_copy

pytestmark = pytest.mark.versions

MODEL = {"weight": torch.arange(12.0).view(3, 4), "tied": torch.ones(5)}
STATE = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "progress": {"step": 3}}


def write(directory, step, scale=1.0):
    return write_checkpoint(directory, step, {name: value * scale for name, value in MODEL.items()}, STATE)


def test_what_is_written_is_read(tmp_path):
    model, state = read_checkpoint(write(tmp_path, 3))
    assert all(torch.equal(model[name], MODEL[name]) for name in MODEL) and state["progress"] == {"step": 3}
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
    checkpoint.put_back(tmp_path)  # as a start does
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


def test_the_first_figure_that_is_a_number_is_better_than_none():
    progress = checkpoint.Progress()
    for step, figure in ((1, math.nan), (2, 0.5), (3, math.nan), (4, 0.4), (5, 0.6)):
        progress.step = step
        progress.note({"eval/r2": figure}, metric="eval/r2", mode="max")
        assert progress.best_step == {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}[step]


def test_damaged_checkpoints_do_not_take_the_place_of_new_ones(tmp_path):
    for step in (1, 2, 8, 9):
        write(tmp_path, step)
    for step in (8, 9):
        (tmp_path / f"step_{step:08d}/state.pt").write_bytes(b"")
    assert checkpoint.take_up(tmp_path).name == "step_00000002"
    for step in (3, 4, 5):
        write(tmp_path, step)
        checkpoint.prune(tmp_path, keep=2, best=())
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [4, 5]
    assert (tmp_path / ".damaged-step_00000009").is_dir() and (tmp_path / ".damaged-step_00000008").is_dir()
    assert checkpoint.take_up(tmp_path).name == "step_00000005"


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        saver = Saver(disk / "checkpoints", keep=2, max_failures=2)
        small, large = {"w": torch.ones(1000)}, {"w": torch.ones(1_000_000)}
        saver.save(1, small, STATE, ())
        saver.save(2, large, STATE, ())
        saver.wait()
        assert "SAVING FAILED at step 2" in caplog.text and saver.failures == 1
        assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step_00000001"]
        verify(newest_good(disk / "checkpoints"))
        saver.save(3, large, STATE, ())
        saver.save(4, small, STATE, ())
        saver.wait()
        assert saver.failures == 0 and newest_good(disk / "checkpoints").name == "step_00000004"
        for step in (5, 6, 7):
            saver.save(step, large, STATE, ())
        with pytest.raises(OSError, match="3 saves in a row"):
            saver.wait()
        saver = Saver(disk / "checkpoints", keep=2, max_failures=2)
        saver.save(8, large, STATE, ())
        with pytest.raises(OSError, match="the last checkpoint could not be saved"):
            saver.close()
        # The record waits until there is space again; a checkpoint that counts on it has failed until then.
        record = Record(disk / "metrics.jsonl")
        record.open(None)
        with contextlib.suppress(OSError):
            (disk / "more").write_bytes(b"0" * 2_000_000)
        for step in range(1, 400):
            record.write({"step": step, "train/loss": 1 / step})
        assert caplog.text.count("its rows wait") == 1 and len([*record.rows()]) < 399
        saver = Saver(disk / "checkpoints", keep=2, max_failures=2)
        saver.save(9, small, STATE, (), record.sync)
        assert saver.failures == 1 and newest_good(disk / "checkpoints").name == "step_00000004"
        (disk / "more").unlink()
        saver.save(10, small, STATE, (), record.sync)
        saver.close()
        assert [row["step"] for row in record.rows()] == list(range(1, 400))
        record.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_snapshot_does_not_follow_training(tmp_path):
    """The state is copied before save returns: what training does to it afterwards is not saved."""
    weight = torch.ones(1000, 1000)
    saver = Saver(tmp_path, keep=1, max_failures=0)
    saver.save(1, {"w": weight, "same": weight, "view": weight.t()}, STATE, ())
    weight.zero_()
    saver.wait()
    model, _ = read_checkpoint(newest_good(tmp_path))
    assert all((tensor == 1).all() for tensor in model.values()) and model["view"].is_contiguous()


def test_copies_are_made_once_into_the_same_memory_and_read_when_they_are_there(tmp_path, monkeypatch):
    """As on a GPU, where copies arrive later: here the device is a list of what it was asked for."""
    said, written = [], []

    class Mark:
        def synchronize(self):
            said.append("arrived")

    def record():
        said.append("mark")
        return Mark()

    def write(directory, step, model, state):
        said.append("write")
        written.append([model, state])

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tied = torch.randn(5)
    live = {
        "image": image, "turned": torch.randn(3, 4).t(), "tied": tied, "again": tied, "view": tied[1:3],
        "half": torch.tensor([1.5, math.nan]).bfloat16(), "flag": torch.tensor(True), "count": torch.tensor(7),
        "none": torch.empty(0, 3), "parameter": torch.nn.Parameter(torch.randn(2)), "own": own_copy(torch.randn(6)),
    }  # fmt: skip
    saver = Saver(tmp_path, keep=1, max_failures=0, staging=Staging(record=record))
    places = []
    for step in range(3):
        live["count"] += 1
        expected = {name: value.detach().clone() for name, value in live.items()}
        saver.save(
            step, live, {"losses": torch.randn(10 + step), "deep": [live["tied"], {"x": live["image"]}], "n": step}, ()
        )
        with torch.no_grad():
            for name, value in live.items():
                if value.is_floating_point() and name != "own":
                    value.zero_()
        saver.wait()
        model, state = written[-1]
        for name, value in model.items():
            same = value.contiguous().view(-1).view(torch.uint8), expected[name].contiguous().view(-1).view(torch.uint8)
            assert torch.equal(*same) and value.is_contiguous() and type(value) is torch.Tensor, name
        assert model["own"] is live["own"] and state["n"] == step
        assert torch.equal(state["deep"][1]["x"], expected["image"])
        pointers = [one.data_ptr() for one in (*model.values(), state["deep"][0], state["deep"][1]["x"]) if one.numel()]
        assert len(set(pointers)) == len(pointers)
        places.append(sorted(pointers))
        with torch.no_grad():
            live["image"].normal_(), live["tied"].normal_()
    assert places[0] == places[1] == places[2]
    assert said == ["mark", "arrived", "write"] * 3
    kept = sum(len(buffers) for buffers in saver.staging._kept.values())
    assert kept == 10 + 3, "those of the model but its own copy, of the state, and none of a length that has gone"


def test_nothing_of_a_run_lives_in_the_files_that_it_went_on_from(tmp_path):
    """They are mapped, not read; then overwritten, cut short and removed: the run has copies, and no file is open."""
    from test_probe import OPTIMIZERS, Drawing, _all_of, _data, _made, _same

    from launcher.batching.plan import plan_batch
    from launcher.batching.stream import Stream

    def new(kind, options):
        return _made(Drawing(), _data(6), plan, kind, 1.0, 0.9, fused=False, **options)[0]

    plan = plan_batch(64, 32, 1, None)
    for name, (kind, options) in OPTIMIZERS.items():
        if name == "adagrad":
            continue  # without the momentum that this schedule turns
        trainer = new(kind, options)
        for batch in Stream(_data(6).train, plan, 0, 0, trainer.device, 0).batches(0, 3):
            trainer.step(batch)
        state = checkpoint.gather_state(trainer, checkpoint.Progress(step=3), trainer.ranks)
        saver = Saver(tmp_path / name, keep=1, max_failures=0)
        saver.save(3, trainer.weights(trainer.measured), state, ())
        saver.close()
        found = newest_good(tmp_path / name)
        other = new(kind, options)
        read = read_checkpoint(found)
        assert Path("/proc/self/maps").read_text().count(str(found)) >= 2, "mapped"
        checkpoint.restore(*read, other, other.ranks)
        del read
        for file in found.iterdir():
            file.write_bytes(bytes(file.stat().st_size))
            os.truncate(file, 0)
            file.unlink()
        gc.collect()
        assert str(found) not in Path("/proc/self/maps").read_text()
        mine, theirs = (_all_of(one) for one in (other, trainer))
        skipped = ("window", "gradients", "torch", "python", "numpy")
        _same(*({k: v for k, v in of.items() if not k.startswith(skipped)} for of in (mine, theirs)))
        assert other.window.steps == [0, 1, 2]
        for batch in Stream(_data(6).train, plan, 0, 0, trainer.device, 0).batches(3, 5):
            other.step(batch)
        other.check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_save_waits_for_no_copy_and_saves_what_was_there(tmp_path):
    device = torch.device("cuda:0")
    weight, busy = torch.zeros(1 << 24, device=device), torch.randn(4096, 4096, device=device)
    saver = Saver(tmp_path, keep=9, max_failures=0, staging=Staging.for_device(device))
    for step in range(3):
        for _ in range(50):
            busy = busy @ busy / 64
        weight.fill_(step)
        saver.save(step, {"w": weight}, STATE, ())
        weight.fill_(-1)
    saver.close()
    for step in range(3):
        model, _ = read_checkpoint(tmp_path / f"step_{step:08d}")
        assert (model["w"] == step).all()
