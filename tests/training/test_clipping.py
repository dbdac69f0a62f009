"""Clipping by value, and the norm of a gradient that is not clipped by it: plain torch, and runs beside each other."""

from pathlib import Path

import pytest
import torch
from kill_loop import RUN, place
from processes import rows, start, train
from test_hot_loop import WINDOW, _loop, _steps

WORDS = [*(word for word in RUN if not word.startswith(("clip_grad_norm", "epochs"))), "epochs=3"]


def _updates(directory):
    """Ten updates of the hot loop's network, clipped by value, and the norm that it notes last."""
    trainer, batches = _loop(clip_grad_value=0.02, log_grad_norm=True)
    _steps(trainer, batches, 10)
    norm = trainer.read_window()["train/grad_norm"]
    torch.save((trainer.model.state_dict(), norm), Path(directory) / "updates.pt")


def _by_hand(directory):
    trainer, batches = _loop()
    model = trainer.model
    optimizer, schedule = trainer.optimizer, trainer.schedule
    for _ in range(10):
        batch = next(batches)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.micros[0].inputs), batch.micros[0].targets).backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert (torch.cat([p.grad.flatten() for p in model.parameters()]).abs() > 0.02).any(), "something is clipped"
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.02)
        optimizer.step()
        schedule.step()
    torch.save((model.state_dict(), norm.item()), Path(directory) / "by_hand.pt")


def test_by_value_as_in_plain_torch_and_the_norm_is_that_before(tmp_path):
    start(_updates, (str(tmp_path),), tmp_path / "io").ok()
    start(_by_hand, (str(tmp_path),), tmp_path / "io1").ok()
    (ours, norm), (theirs, its) = (torch.load(tmp_path / f"{name}.pt") for name in ("updates", "by_hand"))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)
    assert norm == pytest.approx(its, rel=1e-5)


@pytest.mark.soak
def test_the_norm_in_the_record_is_the_one_that_clipping_sees(tmp_path):
    """A bound that is never reached clips nothing and notes the same norm; without either there is none."""
    found = {}
    for name, words in {"logged": ["log_grad_norm=true"], "bounded": ["clip_grad_norm=1e9"], "bare": []}.items():
        train([*WORDS, *words], place(tmp_path / name), world=2).ok()
        found[name] = rows(tmp_path / name / "run")
    assert found["logged"] == found["bounded"]
    assert sum("train/grad_norm" in row for row in found["logged"]) >= 3
    assert [{k: v for k, v in row.items() if k != "train/grad_norm"} for row in found["logged"]] == found["bare"]


def _looks(directory):
    trainer, batches = _loop(clip_grad_value=0.02, log_grad_norm=True)
    _steps(trainer, batches)
    trainer.read_window()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _steps(trainer, batches)
    names = [event.name for event in profiler.events()]
    assert names.count("aten::addmm") == 2 * WINDOW, "the profiler has seen the steps"
    assert not {"aten::item", "aten::_local_scalar_dense"} & set(names)


def test_neither_is_a_look_at_the_device(tmp_path):
    start(_looks, (str(tmp_path),), tmp_path / "io").ok()


@pytest.mark.gpu
def test_neither_waits_for_a_gpu():
    trainer, batches = _loop("cuda", clip_grad_value=0.02, log_grad_norm=True)
    _steps(trainer, batches, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _steps(trainer, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.read_window()["train/grad_norm"] > 0
