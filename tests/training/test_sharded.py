"""A model of which every rank has a part does what the whole one does: beside DDP, and beside a resumed self."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from kill_loop import OWN, RUN, flat, newest, place, same_bits
from processes import rows, start, summary, train
from safetensors.torch import load_file
from torch import nn
from trainers import make_accelerator, make_trainer

from launcher.core.errors import ConfigError
from launcher.training.sharded import find_units

# 25 samples to validate on: of two ranks one has a batch more than the other. FAULT="1 1 65 15": on rank 1, in
# training, the 65th call sends the process signal 15.
FAULTY = (
    OWN.replace("part(30)", "part(25)")
    + """
import os, time
from launcher.models.mlp import MLP

class Net(MLP):
    calls = [0, 0]

    def forward(self, x):
        self.calls[self.training] += 1
        rank, training, call, number = map(int, os.environ.get("FAULT", "-1 0 0 0").split())
        if int(os.environ["RANK"]) == rank and self.training == training and self.calls[training] == call:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        return super().forward(x)
"""
)
RUN = [*(word for word in RUN if not word.startswith("epochs")), "epochs=6", "model._target_=own.Net"]
STEPS = 30
SHARDED = [*RUN, "strategy=fsdp"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """DDP on 2 and 3 ranks."""
    found = {world: place(tmp_path_factory.mktemp(f"ddp{world}"), FAULTY) for world in (2, 3)}
    for world, directory in found.items():
        train(RUN, directory, world).ok()
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """FSDP on 2 and 3 ranks, never disturbed."""
    found = {world: place(tmp_path_factory.mktemp(f"fsdp{world}"), FAULTY) for world in (2, 3)}
    for world, directory in found.items():
        assert "sharded    2 blocks" in train(SHARDED, directory, world).ok().out()
    return found


def same_rows(one, other, rel=1e-5):
    for row, expected in zip(rows(one / "run"), rows(other / "run"), strict=True):
        assert row == pytest.approx(expected, rel=rel, abs=1e-6)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_losses_figures_and_checkpoints_are_those_of_ddp(world, whole, sharded):
    """Dropout, augmentation, accumulation, a moving average, clipping, parts of unequal size."""
    same_rows(sharded[world], whole[world])
    assert len(rows(whole[world] / "run")) > 10 and "train/grad_norm" in rows(whole[world] / "run")[0]
    one, other = (load_file(newest(d[world]) / "model.safetensors") for d in (sharded, whole))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)
    one, other = (dict(flat(torch.load(newest(d[world]) / "state.pt"))) for d in (sharded, whole))
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], torch.Tensor):
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "words",
    [
        ["loss=focal", "loss.alpha=balanced", "optimizer=lion", "optimizer.lr=0.001", "batch.global_size=59",
         "strategy.block=Linear"],
        ["strategy.accumulate_whole=true", "strategy.reshard_after_forward=false", "optimizer=adagrad"],
        ["mixed_precision=bf16", "model.hidden=[16,16,16]", "strategy.meta_init=false"],
    ],
    ids=["weighted, fewer samples than ranks", "kept longer", "bf16"],
)  # fmt: skip
def test_its_options_leave_the_losses_as_they_are(words, tmp_path):
    words = [*words, "epochs=3", "scheduler.warmup=1"]
    named = {word.partition("=")[0] for word in words} | ({"loss.label_smoothing"} if "loss=focal" in words else set())
    kept = [word for word in RUN if word.partition("=")[0] not in named]
    ddp, fsdp = place(tmp_path / "ddp", FAULTY), place(tmp_path / "fsdp", FAULTY)
    train([*kept, *(word for word in words if not word.startswith("strategy"))], ddp, 2).ok()
    train([*kept, "strategy=fsdp", *words], fsdp, 2).ok()
    same_rows(fsdp, ddp, 2e-2 if "mixed_precision=bf16" in words else 1e-5)


@pytest.mark.soak
def test_stopped_and_killed_it_ends_with_the_same_bits(sharded, tmp_path):
    """Stopped in training by a signal to one rank, stopped in an evaluation, killed: each time it goes on exactly."""
    directory = place(tmp_path, FAULTY)
    train(SHARDED, directory, 2, {"FAULT": f"1 1 31 {signal.SIGTERM:d}"}, name="io0").ok()
    assert (directory / "run/stopped.json").exists() and rows(directory / "run")[-1]["step"] < STEPS / 2
    train(SHARDED, directory, 2, {"FAULT": f"1 0 3 {signal.SIGTERM:d}"}, name="io1").ok()
    assert (directory / "run/stopped.json").exists()
    killed = train(SHARDED, directory, 2, {"FAULT": f"0 1 20 {signal.SIGKILL:d}"}, name="io2").wait()
    assert killed.status[0] == -signal.SIGKILL and killed.status[1] == 1
    assert "finished" in train(SHARDED, directory, 2, name="io3").ok().out()
    same_bits(sharded[2], directory)


@pytest.mark.soak
def test_a_run_goes_on_under_another_strategy_and_at_another_number_of_devices(tmp_path):
    words = [word for word in RUN if not word.startswith(("epochs", "scheduler", "model.dropout", "eval_every"))]
    words += ["scheduler=constant", "model.dropout=0.0", "eval_every=4", "epochs=100", "ema_decay=0.5"]
    through, moved = place(tmp_path / "through", FAULTY), place(tmp_path / "moved", FAULTY)
    train([*words, "max_steps=24"], through, 2).ok()
    for step, strategy, world in ((8, "fsdp", 2), (16, "ddp", 3), (24, "fsdp", 3)):
        train([*words, f"strategy={strategy}", f"max_steps={step}"], moved, world, name=f"io{step}").ok()
        assert summary(moved / "run")["step"] == step and summary(moved / "run")["world_size"] == world
    same_rows(moved, through, 1e-3)


def _net():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(7, 33), nn.Linear(33, 65), nn.BatchNorm1d(65), nn.Linear(65, 5))
    net.register_buffer("own", torch.rand(3))
    return net


def _parts(directory):
    """On each rank: what it keeps, whether it began as the whole does, and whether all see that one lost a weight."""
    from launcher.batching.plan import plan_batch
    from launcher.batching.stream import Stream
    from launcher.data import Data, TensorSplit
    from launcher.losses.loss import build_loss
    from launcher.training.divergence import Diverged
    from launcher.training.saver import Staging
    from launcher.training.sharded import ShardedTrainer, build_model, plan_sharding

    strategy = {"name": "fsdp", "block": None, "reshard_after_forward": True, "accumulate_whole": False}
    strategy |= {"meta_init": True}
    ranks, accelerator = make_accelerator(strategy=strategy)
    torch.manual_seed(0)
    part = TensorSplit(torch.randn(64, 7), torch.arange(64) % 5)
    data = Data("made", "classification", (7,), 5, part, part, part)
    model = build_model(strategy, ranks, _net)
    expected, whole = _net().state_dict(), sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters())
    kind = partial(ShardedTrainer, plan_sharding(strategy, model, ranks))
    loss = build_loss({"_target_": "torch.nn.CrossEntropyLoss"}, data)
    trainer = make_trainer(model, loss, optimizer, devices=(ranks, accelerator), kind=kind)
    dealt = trainer.weights(model)
    same = all(torch.equal(dealt[name], value) for name, value in expected.items()) or ranks.rank > 0
    plan = plan_batch(64, 16, ranks.world_size, None)
    trainer.step(next(Stream(part, plan, 0, ranks.rank, accelerator.device, 0).batches(0, 1)))
    kept = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    states = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.dim())
    trainer.check()
    if ranks.rank == ranks.world_size - 1:
        trainer._parameters[0].data[0, 0] = torch.inf
    try:
        trainer.check()
        seen = False
    except Diverged:
        seen = True
    staging = Staging()  # rank 0 has put it all together in host memory once, and is not to copy it there again
    copied, _ = staging.copy((trainer.weights(model), trainer.optimizer_state()))
    again = sum(one.numel() for buffers in staging._kept.values() for one in buffers)
    assert again < 20 and (ranks.rank > 0 or torch.equal(copied[0]["own"], expected["own"]))
    torch.save((whole, kept, states, seen, same), Path(directory) / f"parts.{ranks.rank}")


@pytest.mark.parametrize("world", [2, 4])
def test_each_rank_keeps_its_part_of_the_same_weights_and_hears_what_another_lost(world, tmp_path):
    start(_parts, (tmp_path,), tmp_path / "io", world).ok()
    found = [torch.load(tmp_path / f"parts.{rank}") for rank in range(world)]
    wholes, kept, states, seen, same = zip(*found, strict=True)
    assert sum(kept) == wholes[0] and sum(states) == 2 * wholes[0]
    assert max(kept) < 1.15 * wholes[0] / world
    assert all(seen) and all(same)


class Half(nn.Module):
    """Blocks of two layers, every kind of normalisation, a buffer that makes a sum float32, a part that is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Linear(7, 64), nn.BatchNorm1d(64)
        self.register_buffer("place", torch.linspace(0, 1, 64))
        self.blocks = nn.ModuleList([self._block(norm) for norm in (nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm)])
        self.blocks.append(self._block(lambda width: nn.GroupNorm(4, width)))
        self.blocks[1][1].bias.requires_grad_(False)
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 5))

    def _block(self, norm):
        return nn.Sequential(norm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, x):
        x = self.norm(self.stem(x)) + self.place
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _halves(directory, strategy, precision, whole):
    """On each rank: the gradient of an update, the types in which things travel, what the forward keeps of weights."""
    import torch.distributed as dist

    from launcher.batching.plan import plan_batch
    from launcher.batching.stream import Stream
    from launcher.data import Data, TensorSplit
    from launcher.losses.loss import build_loss
    from launcher.training.sharded import ShardedTrainer, build_model, plan_sharding
    from launcher.training.trainer import Trainer

    options = {"name": strategy} | (
        {"find_unused_parameters": False}
        if strategy == "ddp"
        else {"block": None, "reshard_after_forward": True, "accumulate_whole": whole, "meta_init": True}
    )
    ranks, accelerator = make_accelerator(precision=precision, strategy=options)
    torch.manual_seed(0)
    part = TensorSplit(torch.randn(64, 7), torch.arange(64) % 5)
    data = Data("made", "classification", (7,), 5, part, part, part)
    model = build_model(options, ranks, Half)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    sharding = plan_sharding(options, model, ranks)
    kind = Trainer if sharding is None else partial(ShardedTrainer, sharding)
    loss = build_loss({"_target_": "torch.nn.CrossEntropyLoss"}, data)
    trainer = make_trainer(model, loss, optimizer, devices=(ranks, accelerator), kind=kind, ema_decay=0.5)
    before = {name: value.clone() for name, value in trainer.weights(model).items()}
    travelled = set()
    for name in dir(dist):  # torch has given these new names
        if name.startswith(("all_gather_", "reduce_scatter_")) and name.endswith(("_tensor", "_single")):
            real = getattr(dist, name)

            def noted(*a, real=real, name=name, **k):
                tensor = a[1] if len(a) > 1 else k.get("input_tensor", k.get("input"))
                if tensor is not None and tensor.numel() > 1000:
                    travelled.add((name.partition("_")[0], tensor.dtype))
                return real(*a, **k)

            setattr(dist, name, noted)
    samples = Stream(part, plan_batch(64, 32, 2, 8), 0, ranks.rank, accelerator.device, 0)
    trainer.step(next(samples.batches(0, 1)))
    update = {name: before[name] - value for name, value in trainer.weights(model).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        values, *_ = trainer.forward(part.inputs[:8], part.targets[:8])
    kept = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in saved if one.numel() == 64 * 256}
    trainer.model.eval(), trainer.eval_model.eval()
    with torch.no_grad(), accelerator.autocast():
        measured = trainer.eval_model(part.inputs[:8])
    torch.save(
        (update, travelled, sum(kept.values()), values.detach(), measured.detach()),
        Path(directory) / f"{strategy}.{precision}.{whole}.{ranks.rank}",
    )


def test_bf16_gathers_halves_keeps_none_of_them_and_rounds_as_ddp_does(tmp_path):
    """Gradients travel in float32; normalisations with statistics stay in it; an error like that of autocast."""
    found = {}
    for strategy, precision, whole in (
        ("ddp", "no", False), ("ddp", "bf16", False), ("fsdp", "bf16", False), ("fsdp", "bf16", True)
    ):  # fmt: skip
        start(_halves, (tmp_path, strategy, precision, whole), tmp_path / f"io.{strategy}{precision}{whole}", 2).ok(60)
        found[strategy, precision, whole] = torch.load(tmp_path / f"{strategy}.{precision}.{whole}.0")
    exact, ddp = found["ddp", "no", False], found["ddp", "bf16", False]
    assert ddp[2] == 8 * 2 * 64 * 256, "what autocast keeps: both layers of each of four blocks"
    for whole in (False, True):
        update, travelled, kept, values, measured = found["fsdp", "bf16", whole]
        assert travelled == {("all", torch.bfloat16), ("reduce", torch.float32)}
        assert kept == 0
        assert values.dtype == torch.float32
        for one, two, true in ((values, ddp[3], exact[3]), (measured.float(), ddp[4].float(), exact[4])):
            assert (one - true).norm() < 2 * (two - true).norm() < 0.1 * true.norm()
        one, two, true = (torch.cat([u[name].flatten() for name in exact[0]]) for u in (update, ddp[0], exact[0]))
        assert (one - true).norm() < 2 * (two - true).norm() < 0.1 * true.norm()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


class Tall(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.blocks = nn.ModuleList([Block(), Block(), nn.ReLU()])
        self.tail = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
        if tied:
            self.head.weight = self.blocks[0].inner[2].weight = nn.Parameter(torch.zeros(4, 8))


def test_blocks_are_found_where_they_repeat():
    assert find_units(Tall(), None) == ["blocks.0", "blocks.1"]
    assert find_units(Tall(), "Linear") == [
        "embedding", "head", "blocks.0.inner.0", "blocks.0.inner.2", "blocks.1.inner.0", "blocks.1.inner.2", "tail.0",
    ]  # fmt: skip
    assert find_units(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), None) == ["0", "2"]
    assert find_units(nn.Linear(2, 2), None) == []
    with pytest.raises(ConfigError, match=r"strategy.block=Layer: .* It has: Block, LayerNorm, Linear"):
        find_units(Tall(), "Layer")
    with pytest.raises(ConfigError, match="shared by"):
        find_units(Tall(tied=True), None)
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="scale has no dimension"):
        find_units(model, None)


@pytest.mark.parametrize(
    "words",
    [
        "mixed_precision=fp16", "exact_across_devices=true", "compile=true", "channels_last=true",
        "batch.max_per_device=auto", "optimizer=muon", "strategy.block=Layer",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(words, tmp_path):
    run = train(["strategy=fsdp", words, "hydra.run.dir=run"], tmp_path, name="../io").wait()
    assert run.status == [2] and run.err().startswith("error: ") and "Traceback" not in run.err()
    key, _, value = words.partition("=")
    assert key in run.err() and value in run.err().lower() + run.err() and not (tmp_path / "run").exists()


def test_one_rank_alone_keeps_everything(tmp_path):
    train(["epochs=1", "hydra.run.dir=run", "strategy=fsdp"], tmp_path).ok()
    train(["epochs=1", "hydra.run.dir=again"], tmp_path, name="io1").ok()
    assert (tmp_path / "run/metrics.jsonl").read_text() == (tmp_path / "again/metrics.jsonl").read_text()
