"""Saves in the background: a full disk, training that goes on meanwhile, copies that arrive later."""

import contextlib
import math
import os
import subprocess

import pytest
import torch
from test_checkpoint import STATE

from launcher.run.record import Record
from launcher.training.checkpoint import newest_good, read_checkpoint, verify
from launcher.training.saver import Saver, Staging, own_copy


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


def test_copies_take_the_same_memory_and_are_read_once_there(tmp_path, monkeypatch):
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

    monkeypatch.setattr("launcher.training.saver.write_checkpoint", write)
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
        rest = {"losses": torch.randn(10 + step), "deep": [live["tied"], {"x": live["image"]}], "n": step}
        saver.save(step, live, STATE | rest, ())
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
    assert kept == 10 + 4, "those of the model but its own copy, of the state, and none of a length that has gone"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_save_waits_for_no_copy(tmp_path):
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


def test_the_best_is_linked_before_the_old_one_is_pruned(tmp_path, monkeypatch):
    """Whenever a save is killed, the link leads to a checkpoint: it does at each call that changes the directory."""
    saver, seen = Saver(tmp_path, keep=1, max_failures=0), []

    def watched(real):
        def call(*arguments, **named):
            result = real(*arguments, **named)
            seen.append((tmp_path / "best").is_symlink() and (tmp_path / "best").exists())
            return result

        return call

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 5)):
        saver.save(step, {"w": torch.ones(3)}, STATE | {"progress": {"best_step": best}}, (best,))
        saver.wait()
        assert os.readlink(tmp_path / "best") == f"step_{best:08d}"
    assert seen[0] is False and all(seen[1:]) and len(seen) == 12, "five saves, three links, four prunings"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step_00000005"]
