"""The gradient of a global batch is the same however it is cut: compared with plain PyTorch on the whole batch."""

import pytest
import torch
from omegaconf import OmegaConf
from processes import REPOSITORY, start

LOSSES = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path))
    for path in sorted((REPOSITORY / "conf/loss").glob("*.yaml"))
}
WEIGHTS = [0.2, 1.0, 3.0, 0.5]
VARIANTS = {
    **{name: (name, {}) for name in LOSSES},
    "cross_entropy, weighted": ("cross_entropy", {"weight": WEIGHTS}),
    "cross_entropy, weighted and smoothed": ("cross_entropy", {"weight": WEIGHTS, "label_smoothing": 0.1}),
    "multi_margin, weighted": ("multi_margin", {"weight": WEIGHTS}),
    "focal, weighted": ("focal", {"alpha": WEIGHTS}),
    "focal, balanced": ("focal", {"alpha": "balanced"}),
}
REGRESSION = ("mse", "l1", "huber")
SIZES = (10, 7, 1)  # a full batch, a ragged one, a last one with fewer samples than ranks


def _data(name, samples=37):
    from launcher.data import Data, TensorPart

    torch.manual_seed(1)
    inputs = torch.randn(samples, 6)
    if name in REGRESSION:
        part = TensorPart(inputs, torch.randn(samples, 4))
        return Data("made", "regression", (6,), 4, part, part, part)
    part = TensorPart(inputs, torch.arange(samples) % 4)
    return Data("made", "classification", (6,), 4, part, part, part)


def _model():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))


def _gradients(directory, cap):
    """On each rank: the update that SGD with lr 1 makes on one batch of each size, for every loss."""
    import os
    from pathlib import Path

    from launcher.batch import BatchPlan
    from launcher.distributed import find_ranks, start
    from launcher.divergence import Rollbacks
    from launcher.engine import Trainer
    from launcher.losses import build_loss
    from launcher.schedulers import build_schedule
    from launcher.stream import Batch, MicroBatch

    ranks = find_ranks(os.environ)
    strategy = {"find_unused_parameters": False, "gradient_as_bucket_view": True}
    accelerator = start(ranks, True, "no", 1, 60, True, strategy)
    found = {}
    for variant, (name, more) in VARIANTS.items():
        for size in SIZES:
            data = _data(name)
            model = _model()
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            constant = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1, "interval": "step"}
            schedule = build_schedule(constant, optimizer, 1, 1)
            loss = build_loss(LOSSES[name] | more, data)
            trainer = Trainer(
                model,
                loss,
                optimizer,
                schedule,
                accelerator,
                ranks,
                0,
                None,
                None,
                False,
                False,
                Rollbacks(Path("none"), False),
            )
            share = -(-size // ranks.world_size)
            plan = BatchPlan(37, size, ranks.world_size, ranks.world_size, cap or share, 1)
            at, _ = plan.share(ranks.rank, size)
            micros = []
            for micro in plan.micro_sizes(ranks.rank, size):
                stop = at + max(micro, 1) if micro else 1
                begin = at if micro else 0
                micros.append(MicroBatch(data.train.inputs[begin:stop], data.train.targets[begin:stop], micro))
                at += micro
            before = [p.detach().clone() for p in model.parameters()]
            trainer.step(Batch(0, size, micros))
            update = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)])
            found[variant, size] = (update, trainer.read_window()["train/loss"])
    if ranks.rank == 0:
        torch.save(found, Path(directory) / "gradients.pt")


def _plain(variant, size):
    """What plain PyTorch computes on the whole batch."""
    from torch.nn import functional as F

    from launcher.losses import balanced_weights

    name, more = VARIANTS[variant]
    data = _data(name)
    x, y = data.train.inputs[:size].double(), data.train.targets[:size]
    model = _model().double()
    settings = {k: v for k, v in (LOSSES[name] | more).items() if k != "_target_"}
    outputs = model(x)
    if name == "focal":  # its own formula, weighted as cross entropy is
        alpha = settings["alpha"]
        alpha = balanced_weights("alpha", data) if alpha == "balanced" else torch.tensor(alpha or [1.0] * 4)
        p = outputs.softmax(1).gather(1, y[:, None]).squeeze(1)
        weight = alpha.double()[y]
        value = (-weight * (1 - p) ** settings["gamma"] * p.log()).sum() / weight.sum()
    elif name == "binary_cross_entropy":
        value = F.binary_cross_entropy_with_logits(outputs, F.one_hot(y, 4).double())
    else:
        if settings.get("weight") is not None:
            settings["weight"] = torch.tensor(settings["weight"]).double()
        function = {
            "cross_entropy": torch.nn.CrossEntropyLoss,
            "multi_margin": torch.nn.MultiMarginLoss,
            "mse": torch.nn.MSELoss,
            "l1": torch.nn.L1Loss,
            "huber": torch.nn.HuberLoss,
        }[name](**settings)
        value = function(outputs, y.double() if name in REGRESSION else y)
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), value.item()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("cap", [None, 2])
def test_every_loss_has_the_gradient_of_the_whole_batch_on_any_cut(world, cap, tmp_path):
    start(_gradients, (tmp_path, cap), tmp_path, world).ok(120)
    found = torch.load(tmp_path / "gradients.pt")
    assert len(found) == len(VARIANTS) * len(SIZES)
    for (variant, size), (update, loss) in found.items():
        gradient, value = _plain(variant, size)
        assert gradient.abs().max() > 0.001
        torch.testing.assert_close(
            update.double(), gradient, rtol=1e-4, atol=1e-6, msg=f"{variant}, {size}: {update} {gradient}"
        )
        assert loss == pytest.approx(value, rel=1e-5)
