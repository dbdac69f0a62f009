"""The gradient of a global batch is the same however it is cut: compared with plain PyTorch on the whole batch."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from processes import REPOSITORY, start
from trainers import DDP, make_accelerator, make_trainer

LOSSES = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path))
    for path in sorted((REPOSITORY / "conf/loss").glob("[!a]*.yaml"))  # auto is one of the others
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
    from launcher.data import Data, TensorSplit

    torch.manual_seed(1)
    inputs = torch.randn(samples, 6)
    if name in REGRESSION:
        part = TensorSplit(inputs, torch.randn(samples, 4))
        return Data("made", "regression", (6,), 4, part, part, part)
    part = TensorSplit(inputs, torch.arange(samples) % 4)
    return Data("made", "classification", (6,), 4, part, part, part)


def _model():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))


def _gradients(directory, cap, options=()):
    """On each rank: the update that SGD with lr 1 makes on one batch of each size, for every loss."""
    from pathlib import Path

    from launcher.batching.plan import BatchPlan
    from launcher.batching.stream import Batch, MicroBatch, Stream
    from launcher.losses.loss import build_loss

    ranks, accelerator = make_accelerator(strategy=DDP | dict(options))
    found = {}
    for variant, (name, more) in VARIANTS.items():
        for size in SIZES:
            data = _data(name)
            model = _model()
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            trainer = make_trainer(
                model, build_loss(LOSSES[name] | more, data), optimizer, devices=(ranks, accelerator)
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
            if options:  # as train.py does: DDP's static graph cannot begin in the middle of an accumulation
                trainer.warm_up(Stream(data.train, plan, 0, ranks.rank, accelerator.device, 0))
            before = [p.detach().clone() for p in model.parameters()]
            trainer.step(Batch(0, size, micros))
            update = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)])
            found[variant, size] = (update, trainer.read_metrics()["train/loss"])
    if ranks.rank == 0:
        torch.save(found, Path(directory) / "gradients.pt")


def _plain(variant, size):
    """What plain PyTorch computes on the whole batch."""
    from torch.nn import functional as F

    from launcher.losses.loss import balanced_weights

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


@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        ({"find_unused_parameters": True}, 1e-4),
        ({"static_graph": True}, 1e-4),
        ({"gradient_as_bucket_view": False}, 1e-4),
        ({"compress": "bf16"}, 2e-2),  # 8 bits of mantissa
        ({"compress": "fp16"}, 2e-3),
    ],
    ids=str,
)
def test_options_of_ddp_leave_the_gradient_as_it_is(options, rtol, tmp_path):
    start(_gradients, (tmp_path, 2, tuple(options.items())), tmp_path, 2).ok(120)
    for (variant, size), (update, loss) in torch.load(tmp_path / "gradients.pt").items():
        gradient, value = _plain(variant, size)
        close = (update.double() - gradient).abs() <= rtol * gradient.abs() + rtol * gradient.abs().max()
        assert close.all(), f"{variant}, {size}: {update} {gradient}"
        assert loss == pytest.approx(value, rel=1e-5)


class _Overflowing(torch.nn.Module):
    """Overflows at chosen calls, as half precision does now and then: odd ones in the loss, even ones after it."""

    def __init__(self, at):
        super().__init__()
        self.inner, self.at, self.calls = _model(), at, 0

    def forward(self, inputs):
        outputs = self.inner(inputs)
        self.calls += 1
        if self.calls - 1 not in self.at:
            return outputs
        if self.calls % 2 == 0:
            return outputs * float("inf")
        outputs.register_hook(lambda gradient: gradient * float("inf"))
        return outputs


def _scaled(at, steps, saved=None, rollbacks=None, poisoned=()):
    """A trainer with a gradient scaler of its own that has done `steps`, from a saved state where there is one."""
    from launcher.batching.stream import Batch, MicroBatch
    from launcher.losses.loss import build_loss
    from launcher.training.progress import Progress
    from launcher.training.resume import gather_state, restore

    ranks, accelerator = make_accelerator()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    data, model = _data("cross_entropy"), _Overflowing(at)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    loss = build_loss(LOSSES["cross_entropy"], data)
    trainer = make_trainer(
        model, loss, optimizer, devices=(ranks, accelerator), rollbacks=rollbacks, clip_grad_norm=1.0
    )
    first = 0
    if saved is not None:
        first = restore(*saved, trainer).step
        model.calls = first
    for step in range(first, steps):
        inputs, targets = (t[step % 3 * 10 : step % 3 * 10 + 10] for t in (data.train.inputs, data.train.targets))
        trainer.step(Batch(step, 10, [MicroBatch(inputs * (math.nan if step in poisoned else 1), targets, 10)]))
    return trainer, gather_state(trainer, Progress(step=steps))


OPTIMIZERS = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path))
    for path in sorted((REPOSITORY / "conf/optimizer").glob("*.yaml"))
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_is_seen_behind_every_optimizer(name, bad):
    """Also where the loss is finite, and the update is a sign, which is 0 for NaN."""
    from launcher.batching.stream import Batch, MicroBatch
    from launcher.losses.loss import build_loss
    from launcher.optimizers.optimizer import build_optimizer
    from launcher.training.divergence import Diverged

    data = _data("cross_entropy")
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    if bad is not None:
        model[1].weight.register_hook(lambda gradient: gradient * bad)
    optimizer = build_optimizer(OPTIMIZERS[name], model, 1.0, True)
    trainer = make_trainer(model, build_loss(LOSSES["cross_entropy"], data), optimizer)
    trainer.step(Batch(0, 10, [MicroBatch(data.train.inputs[:10], data.train.targets[:10], 10)]))
    assert trainer.accumulator.losses[0].isfinite()
    if bad is None:
        trainer.check()
    else:
        with pytest.raises(Diverged):
            trainer.check()


def test_a_gradient_that_overflows_for_ever_is_divergence():
    """A gradient scaler leaves out each step: nothing would ever be trained."""
    from launcher.training.divergence import Diverged

    trainer, state = _scaled(range(100), 20)
    assert any(loss.isfinite() for loss in trainer.accumulator.losses) and state["scaler"]["scale"] == 2.0**-10
    with pytest.raises(Diverged):
        _scaled(range(100), 30)  # when it is saved


def test_squares_that_overflow_are_no_divergence():
    """The norm of a gradient's squares is infinite long before they are."""
    trainer, _ = _scaled((), 3)
    trainer.optimizer.state[next(trainer.model.parameters())]["momentum_buffer"].fill_(1e30)
    trainer.check()


def test_what_a_gradient_scaler_skips_is_no_divergence_and_its_state_resumes():
    """The same scaler on the CPU in a plain loop: weights and scale to the last bit, through two overflows."""
    at, steps = (2, 7), 14
    trainer, state = _scaled(at, steps)
    data, model = _data("cross_entropy"), _Overflowing(at)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    scales = []
    for step in range(steps):
        x, y = (t[step % 3 * 10 : step % 3 * 10 + 10] for t in (data.train.inputs, data.train.targets))
        optimizer.zero_grad()
        scaler.scale(torch.nn.functional.cross_entropy(model(x), y, reduction="sum") * (1 / 10)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales[2] == 2.0**9 and scales[7] < scales[6], "the scale was halved where it overflowed"
    assert state["scaler"] == scaler.state_dict()
    assert len(state["window"]["losses"]) == steps and 0 < trainer.read_metrics()["train/loss"] < 10
    for mine, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    # Resumed between the overflows, in the middle of a growth interval
    before, saved = _scaled(at, 5)
    weights = {name: value.clone() for name, value in before.eval_model.state_dict().items()}
    resumed, again = _scaled(at, steps, (weights, saved))
    assert again["scaler"] == state["scaler"]
    for mine, theirs in zip(resumed.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_with_a_gradient_scaler_a_bad_batch_is_left_out_and_an_overflow_is_none(tmp_path):
    """On the way up again after a rollback each batch is looked at: the scaler goes on after one that was left out."""
    from launcher.training.divergence import Rollbacks

    rollbacks = Rollbacks(tmp_path / "rollbacks.json", False)
    rollbacks.careful_until = 10
    trainer, state = _scaled((2,), 8, rollbacks=rollbacks, poisoned=(5,))
    assert rollbacks.skipped == [5], "not the overflow of update 2"
    assert 0 < trainer.read_metrics()["train/loss"] < 10 and state["scaler"]["scale"] < 2.0**12
