"""What a step does beside its arithmetic: no look at the device, no collective but DDP's own, few Python calls."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from options import option
from processes import start
from trainers import make_accelerator, make_trainer

WINDOW = 20  # steps between two log boundaries
PYTHON_CALLS = 211  # a step of a dense network with SGD: 209 measured with torch 2.14.1, most of them torch's own
PYTHON_CALLS_DDP = 294  # 292 measured


def _option(path):
    return option(*path.removesuffix(".yaml").split("/"))


def _loop(device="cpu", weight=None, **settings):
    """A trainer and its batches, as train.py builds them, for a dense network with SGD, momentum and cosine."""
    from launcher.batching import stream
    from launcher.batching.plan import plan_batch
    from launcher.data import Data, TensorSplit
    from launcher.losses.loss import build_loss
    from launcher.optimizers.optimizer import build_optimizer

    ranks, accelerator = make_accelerator(device)
    torch.manual_seed(0)
    part = TensorSplit(torch.randn(4000, 16), torch.arange(4000) % 4)
    data = Data("made", "classification", (16,), 4, part, part, part)
    plan = plan_batch(len(part), 16, ranks.world_size, None, None)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).to(accelerator.device)
    optimizer = build_optimizer(_option("optimizer/sgd.yaml"), model, 1.0, True)
    schedule = _option("scheduler/cosine.yaml") | {"interval": "step"}
    loss = build_loss(_option("loss/cross_entropy.yaml") | {"weight": weight}, data).to(accelerator.device)
    trainer = make_trainer(
        model, loss, optimizer, schedule, steps=1000, epoch=250, devices=(ranks, accelerator), **settings
    )
    samples = stream.of_rank(part, plan, 0, ranks, accelerator.device, 0)
    trainer.warm_up(samples)
    return trainer, samples.batches(0, 1000)


def _steps(trainer, batches, count=WINDOW):
    for _ in range(count):
        trainer.step(next(batches))


def _count(directory, weight):
    """On each rank: what torch's profiler sees in a window, and the Python calls of another."""
    trainer, batches = _loop(weight=weight)
    _steps(trainer, batches)
    trainer.read_metrics()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _steps(trainer, batches)
    operations = Counter(event.name for event in profiler.events())
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    _steps(trainer, batches)
    sys.setprofile(None)
    rank = os.environ.get("RANK", "0")
    (Path(directory) / f"counts.{rank}").write_text(json.dumps({"operations": operations, "calls": calls / WINDOW}))


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 3.0, 4.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize("world", [1, 2])
def test_between_log_boundaries_nothing_is_read_and_nothing_sent_but_gradients(world, weight, tmp_path):
    start(_count, (str(tmp_path), weight), tmp_path / "io", world).ok()
    for rank in range(world):
        found = json.loads((tmp_path / f"counts.{rank}").read_text())
        operations = found["operations"]
        assert operations["aten::addmm"] == 2 * WINDOW, "the profiler has seen the steps"
        assert operations.get("aten::item", 0) == 0
        sent = {name: n for name, n in operations.items() if name.startswith("c10d::")}
        assert sent == ({"c10d::allreduce_": WINDOW} if world > 1 else {})
        budget = PYTHON_CALLS if world == 1 else PYTHON_CALLS_DDP
        assert found["calls"] <= budget + (0 if weight is None else 15), "overhead has crept in"


@pytest.mark.gpu
def test_a_gpu_is_never_waited_for_between_log_boundaries():
    trainer, batches = _loop("cuda")
    _steps(trainer, batches, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _steps(trainer, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.read_metrics()["train/loss"] < 2


def test_an_average_of_the_weights_drags_no_history_along():
    trainer, batches = _loop(ema_decay=0.9)
    _steps(trainer, batches, 3)
    assert all(parameter.grad_fn is None for parameter in trainer.eval_model.parameters())


def test_a_batch_without_weight_moves_nothing():
    trainer, batches = _loop(weight=[0.0, 0.0, 0.0, 1e-30])
    batch = next(batches)
    batch.micros[0].targets.zero_()
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.step(batch)
    assert batch.size == 16, "over the smallest float32 that is more than that holds"
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
