"""What a step calls reads nothing back from the device, and makes no tensor on the host to copy it there.

On a GPU either waits for all that it has been given to do. Here the device is torch's meta device, which has no
numbers: whatever asks it for one fails. A tensor that is made of Python numbers and sent there is found by its call.
"""

import os
from contextlib import contextmanager

import pytest
import torch
from accelerate import Accelerator
from processes import REPOSITORY, start
from test_hot_loop import _option
from torch import nn
from torch.overrides import TorchFunctionMode
from trainers import make_trainer, supervised

from launcher.batching import stream
from launcher.batching.plan import plan_batch
from launcher.data import Data, TensorSplit
from launcher.data.augmentation import FlipAndShift, augmentation
from launcher.data.images import Standardise, StandardiseChannels
from launcher.distributed.ranks import find_ranks
from launcher.metrics.classification import ClassificationSums
from launcher.metrics.language import LanguageSums
from launcher.metrics.multilabel import LabelSums
from launcher.metrics.regression import RegressionSums
from launcher.optimizers.optimizer import build_optimizer
from launcher.training.mixup import mixed

META = torch.device("meta")
MADE = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.from_numpy}
REGRESSIONS = ("torch.nn.MSELoss", "torch.nn.L1Loss", "torch.nn.HuberLoss", "torch.nn.SmoothL1Loss")
WEIGHTS = [1.0, 0.5, 2.0, 3.0]


class Waiting(TorchFunctionMode):
    """Fails where a tensor is made on the host for the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        copied = function in MADE or (function is torch.Tensor.to and args[0].device.type == "cpu")
        assert not (copied and found.device == META), f"{function.__name__} waits for the device"
        return found


def test_what_waits_is_found():
    values = torch.zeros(3, device=META)
    for wait in (
        lambda: values.sum().item(), lambda: values.tolist(), lambda: values.cpu(), lambda: values[values > 0],
        lambda: bool(values.any()), lambda: values.nonzero(), lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: torch.as_tensor(0.5, device=META), lambda: torch.zeros(3).to(META),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), Waiting():
            wait()


@pytest.mark.parametrize(
    "change",
    [
        augmentation(True, 2, 0.5, 8, [124.5, 20.0, 3.0]),
        augmentation(False, 0, 1.0, 8, [9.0] * 3),
        FlipAndShift(True, 1),
    ],
)
def test_augmentations(change):
    raw = torch.empty(6, 3, 8, 8, dtype=torch.uint8, device=META)
    with Waiting():
        found = change(raw, torch.empty(6, change.draws, device=META))
    assert found.device == META and found.dtype == torch.uint8 and found.shape == raw.shape


def test_preparing():
    raw = torch.empty(6, 3, 8, 8, dtype=torch.uint8, device=META)
    with Waiting():
        assert Standardise(1.0, 2.0)(raw).device == META
        assert StandardiseChannels([1.0, 2.0, 3.0], [1.0] * 3)(raw).device == META


def test_sums_of_metrics():
    scores, classes = torch.empty(9, 7, device=META), torch.empty(9, dtype=torch.int64, device=META)
    with Waiting():
        ClassificationSums(7, META).update(scores, classes)
        ClassificationSums(2000, META).update(torch.empty(9, 2000, device=META), classes)
        LabelSums(7, META).update(scores, scores)
        RegressionSums(7, META).update(scores, scores)
        LanguageSums(META).update(scores.view(3, 3, 7), classes.view(3, 3))


def _trainer(loss, optimizer, mixup, device):
    """A small network, and its batches, on a device of any kind: as train.py makes them."""
    ranks, accelerator = find_ranks(os.environ), Accelerator(cpu=True)
    accelerator.state.device = device
    change = augmentation(True, 2, 0.5, 8, [124.5, 20.0, 3.0])
    images, classes = torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    regression = loss["_target_"] in REGRESSIONS
    part = TensorSplit(
        images, torch.zeros(40, 4) if regression else classes, StandardiseChannels([1.0] * 3, [2.0] * 3), change,
        change.draws,
    )  # fmt: skip
    data = Data("made", "regression" if regression else "classification", (3, 8, 8), 4, part, part, part)
    losses = supervised(data, loss)
    kind = mixed(mixup, data, losses)
    part.inputs, part.targets = part.inputs.to(device), part.targets.to(device)
    layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 4)
    model = nn.Sequential(*layers).to(device)
    if "fused" in optimizer and device == META:  # for which there is no such kernel
        optimizer = optimizer | {"fused": False}
    built = build_optimizer(optimizer, model, 1.0, True)
    schedule = _option("scheduler/cosine.yaml") | {"interval": "step"}
    trainer = make_trainer(
        model, losses.to(device), built, schedule, epoch=5, devices=(ranks, accelerator), clip_grad_norm=0.5,
        ema_decay=0.9, channels_last=True, clip_grad_value=0.1,
    )  # fmt: skip
    samples = stream.of_rank(part, plan_batch(40, 8, 1, 3, None), 0, ranks, device, 0, kind=kind)
    return trainer, samples.batches(0, 5)


def _steps(device, watching):
    """Updates with each loss and optimizer, augmented, mixed or not, in micro-batches, clipped, with an average."""
    losses = [_option(f"loss/{path.name}") for path in sorted((REPOSITORY / "conf/loss").glob("[!a]*.yaml"))]
    if device == META:
        losses = [loss for loss in losses if loss["_target_"] != "torch.nn.MultiMarginLoss"]  # it has no backward there
    weighted = [
        loss | {key: WEIGHTS} for loss in losses for key in ("weight", "alpha", "pos_weight") if key in loss
    ]  # fmt: skip
    optimizers = [_option(f"optimizer/{path.name}") for path in sorted((REPOSITORY / "conf/optimizer").glob("*.yaml"))]
    never = {"alpha": 0, "cutmix_alpha": 0, "prob": 1, "switch_prob": 0.5}
    plain = [(loss, optimizers[0], never) for loss in losses + weighted] + [(losses[0], o, never) for o in optimizers]
    mixing = [(losses[1], optimizers[-1], never | {name: 1.0}) for name in ("alpha", "cutmix_alpha")]
    assert len(weighted) >= 3 and losses[1]["_target_"] == "torch.nn.CrossEntropyLoss"
    for chosen in plain + mixing:
        trainer, batches = _trainer(*chosen, device)
        trainer.step(next(batches))  # for which the numbers of many samples are sent, and the optimizer's state is made
        with watching():
            for _ in range(2):
                trainer.step(next(batches))
        assert trainer.accumulator.losses[-1].device == device and trainer.accumulator.grad_norm.device == device


def test_updates(tmp_path):
    start(_steps, (META, Waiting), tmp_path / "io").ok()


@contextmanager
def _of_the_driver():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_updates_on_a_gpu(tmp_path):
    start(_steps, (torch.device("cuda", 0), _of_the_driver), tmp_path / "io").ok(120)
