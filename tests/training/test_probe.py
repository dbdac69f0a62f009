"""batch.max_per_device=auto: what it finds is enough for a run, and nothing but that is left of the trying."""

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_loop import OWN, RUN, flat, newest, place
from processes import rows, start, train
from safetensors.torch import load_file
from torch import nn
from trainers import make_trainer, supervised

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream
from launcher.core.errors import ConfigError, is_out_of_memory
from launcher.training import probe
from launcher.training.evaluation import EvaluationSettings, Evaluator
from launcher.training.exact import ExactTrainer
from launcher.training.memory import Meter
from launcher.training.trainer import Trainer

MB = 2**20


def _data(width, samples=64):
    from launcher.data import Data, TensorSplit

    torch.manual_seed(1)
    part = TensorSplit(torch.randn(samples, width), torch.arange(samples) % 4)
    return Data("made", "classification", (width,), 4, part, part, part)


def _made(model, data, plan, optimizer=torch.optim.Adam, clip=None, ema=None, kind=Trainer, shards=None, **options):
    """A trainer on the CPU, and what a probe wants to know of a run."""
    task = supervised(data, {"_target_": "torch.nn.CrossEntropyLoss"})
    made = optimizer(model.parameters(), **{"lr": 0.1, **options})
    one_cycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.2, "interval": "step"}
    trainer = make_trainer(
        model, task, made, one_cycle, steps=20, epoch=4, kind=kind, clip_grad_norm=clip, ema_decay=ema
    )
    parts = SimpleNamespace(
        data=data, plan=plan, sampler=None, kind=Stream, shards=shards, total_steps=20,
    )  # fmt: skip
    return trainer, parts


class Wide(nn.Module):
    """Weights of 0.7 MB; a sample takes 0.4 MB until the backward, and as much when measured, unless that is cheap."""

    def __init__(self, cheap=True):
        super().__init__()
        self.body, self.head, self.cheap = nn.Linear(8, MB // 72), nn.Linear(MB // 72, 4), cheap

    def forward(self, x):
        if self.cheap and not self.training:
            return x[:, :4]
        x = self.body(x).repeat(1, 2)
        return self.head((x.sigmoid() + x.tanh())[:, : MB // 72])


class Device(Meter):
    """A device with so many bytes for all that is there and comes, but for what is copied to the host."""

    def __init__(self, trainer, size):
        self.size = size
        modules = {trainer.model: 0, trainer.eval_model: 0}
        super().__init__([t for m in modules for t in (*m.parameters(), *m.buffers())], False)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and "device" in kwargs:
            return function(*args, **kwargs)
        return super().__torch_dispatch__(function, types, args, kwargs)

    def _count(self, tensor):
        super()._count(tensor)
        if self.now > self.size:
            raise torch.OutOfMemoryError("injected")
        return tensor


@pytest.mark.parametrize("cheap", [True, False], ids=["an update needs most", "an evaluation needs most"])
@pytest.mark.parametrize(
    ("ema", "cap"),
    [
        (0.9, 8),
        *(pytest.param(ema, cap, marks=pytest.mark.soak) for ema, cap in ((None, None), (0.9, None), (None, 8))),
    ],
)
def test_what_is_found_is_enough_for_updates_and_evaluations_and_twice_as_much_is_not(cheap, ema, cap):
    """On devices of many sizes: those on which the last bytes are Adam's moments, an average, gradients that wait."""

    def run(plan, size):
        trainer, parts = _made(Wide(cheap), _data(8), plan, ema=ema, clip=1.0)
        with Device(trainer, size * MB // 4):
            if plan is whole:
                plan = plan.capped(probe.find_size(trainer, parts, False))
            for batch in Stream(parts.data.train, plan, 0, 0, trainer.device, 0).batches(0, 3):
                trainer.step(batch)
                how = EvaluationSettings(plan.evaluation_size(None))
                evaluator = Evaluator(trainer.task, trainer.accelerator, trainer.ranks, how)
                evaluator.evaluate(trainer.eval_model, parts.data.validation)
        return plan

    whole, found = plan_batch(64, 32, 1, cap), set()
    for size in (24, 32, 40, 48, 56) if cheap else (30, 42, 60):
        plan = run(whole, size)
        found.add(plan.micro_size)
        if plan.micro_size < whole.micro_size:
            with pytest.raises(torch.OutOfMemoryError):
                run(plan.capped(2 * plan.micro_size), size)
    assert min(found) < whole.micro_size, found


def test_where_not_one_sample_fits_it_says_so():
    trainer, parts = _made(Wide(cheap=False), _data(8), plan_batch(64, 32, 1, None))
    with Device(trainer, 14 * MB // 4), pytest.raises(ConfigError, match="not even one sample fits"):
        probe.find_size(trainer, parts, False)


class Drawing(nn.Module):
    """Moves all that a model can: weights, a buffer that it replaces, BatchNorm's, and every generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + len(x)
        return self.body(x) * (1 + random.random() + np.random.random())


def _all_of(trainer):
    """Everything that a next update depends on, copied."""
    tensors = {f"model {name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"average {name}": value for name, value in trainer.eval_model.state_dict().items()}
    of_schedule = {k: v for k, v in trainer.schedule.state_dict().items() if k != "main"}
    main = {k: v for k, v in trainer.schedule.main.state_dict().items() if isinstance(v, int | float | list)}
    found = {
        "optimizer": trainer.optimizer.state_dict(), "schedule": of_schedule, "main": main, **tensors,
        "scaler": trainer.scaler and trainer.scaler.state_dict(), "window": vars(trainer.accumulator), "lr": trainer.lr,
        "modes": [module.training for module in (*trainer.forward.modules(), *trainer.eval_model.modules())],
        "gradients": [parameter.grad is None for parameter in trainer.model.parameters()],
        "torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()[1].tolist(),
    }  # fmt: skip
    return dict(flat(copy.deepcopy(found)))


def _same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert equal, name


OPTIMIZERS = {
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    "adam": (torch.optim.Adam, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fault", [None, "update", "evaluation", "another"])
def test_nothing_is_left_of_an_update_and_an_evaluation(name, fault, monkeypatch):
    """Also where they fail, and beside a gradient scaler; the places in memory stay the same too."""
    plan = plan_batch(64, 32, 1, 8)
    kind, options = OPTIMIZERS[name]
    cycled = {} if name == "adagrad" else {"betas": (0.85, 0.9)} if name == "adam" else {}
    if name == "adagrad":  # OneCycleLR wants a momentum to turn
        monkeypatch.setattr(torch.optim.Adagrad, "__init__", _with_momentum(torch.optim.Adagrad.__init__))
    trainer, parts = _made(Drawing(), _data(6), plan, kind, 1.0, 0.9, **options, **cycled)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before, places = _all_of(trainer), [t.data_ptr() for t in trainer.model.state_dict().values()]
    calls = []

    def failing(module, inputs):
        calls.append(module.training)
        if fault is not None and module.training is (fault != "evaluation") and len(calls) >= 2:
            raise torch.OutOfMemoryError("injected") if fault != "another" else KeyError("injected")

    for model in (trainer.model, trainer.eval_model):
        model.register_forward_pre_hook(failing)
    with probe.untouched(trainer):
        if fault == "another":
            with pytest.raises(KeyError):
                probe.fits(trainer, parts, plan, False)
        else:
            assert probe.fits(trainer, parts, plan, False) is (fault is None)
            assert (
                calls == {None: [True] * 4 + [False], "update": [True] * 2, "evaluation": [True] * 4 + [False]}[fault]
            )
            assert not torch.equal(before["model body.0.weight/"], trainer.model.body[0].weight) or fault == "update"
    _same(before, _all_of(trainer))
    assert [t.data_ptr() for t in trainer.model.state_dict().values()] == places


def _with_momentum(real):
    def made(self, *arguments, **more):
        real(self, *arguments, **more)
        for group in self.param_groups:
            group["momentum"] = 0.9
        self.defaults["momentum"] = 0.9

    return made


def _alone(directory, kind):
    """Rank 0 does an update while the others wait for it in another place: a word to them would hang, or be counted."""
    import torch.distributed as dist

    plan = plan_batch(64, 32, 2, 8, 4 if kind is ExactTrainer else None)
    trainer, parts = _made(Drawing(), _data(6), plan, clip=1.0, kind=kind, shards=4 if kind is ExactTrainer else None)
    said = []
    for name in ("all_gather", "all_reduce", "broadcast"):
        real = getattr(dist, name)
        setattr(dist, name, lambda *a, real=real, **k: said.append(real) or real(*a, **k))
    probe._warm_up(trainer, parts)
    said.clear()
    before = _all_of(trainer)
    if trainer.ranks.rank == 0:
        with probe.untouched(trainer):
            assert probe.fits(trainer, parts, plan, False)
    assert not said
    _same(before, _all_of(trainer))
    samples = Stream(parts.data.train, plan_batch(64, 32, 2, 8), 0, trainer.ranks.rank, trainer.device, 0)
    if kind is Trainer:  # the same step on both: hooks and buckets are as they should be
        trainer.warm_up(samples)
        for batch in samples.batches(0, 2):
            trainer.step(batch)
        torch.save(trainer.model.body[0].weight, Path(directory) / f"weight.{trainer.ranks.rank}")


@pytest.mark.parametrize("kind", [Trainer, ExactTrainer])
def test_no_word_is_said_to_the_other_ranks_meanwhile(kind, tmp_path):
    """DDP's hooks are on the parameters, and stay silent in a backward that its own forward has not prepared."""
    start(_alone, (tmp_path, kind), tmp_path / "io", 2).ok(60)
    if kind is Trainer:
        one, other = (torch.load(tmp_path / f"weight.{rank}") for rank in (0, 1))
        assert torch.equal(one, other)


# A model whose rank 0 has memory for 3 samples at once, and rank 1 for 2; both for ROOM where that is given.
SCARCE = (
    OWN
    + """
import os, random
from launcher.data import Data, DatasetSplit

class Net(torch.nn.Module):
    calls = 0

    def __init__(self, num_outputs, norm=torch.nn.LayerNorm):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(5, 6), norm(6), torch.nn.Dropout(0.2))
        self.register_buffer("seen", torch.zeros(()))
        self.head = torch.nn.Linear(6, num_outputs)

    def forward(self, x):
        rank, where = os.environ.get("RANK", "0"), os.environ.get("WHERE", "forward")
        room = int(os.environ.get("ROOM", {"0": 3, "1": 2}.get(rank, 3)))
        Net.calls += self.training
        self.seen += self.training * len(x)
        if self.training and os.path.exists("run/batch.json") and Net.calls == int(os.environ.get("KILL", "0")):
            os.kill(os.getpid(), 9)
        room = 4 if where == "second" and self.head.weight.grad is None else room
        if len(x) > room and where in ("forward", "second") and self.training:
            raise torch.OutOfMemoryError("injected")
        if where == "evaluation" and not self.training and len(x) > room:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        y = self.head(self.body(x))
        if len(x) > room and where == "backward" and self.training:
            def full(grad):
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
            y.register_hook(full)
        return y

def over_the_batch(num_outputs):
    return Net(num_outputs, torch.nn.BatchNorm1d)

class Rows:
    def __init__(self, part, draws):
        self.part, self.draws = part, draws
    def __len__(self):
        return len(self.part.targets)
    def __getitem__(self, i):
        self.opened = open(os.devnull)  # which cannot be sent to a process that loads
        return self.part.inputs[i] + (random.random() if self.draws else 0), int(self.part.targets[i])

def read():
    data = load()
    parts = [DatasetSplit(Rows(p, p is data.train), p.targets) for p in (data.train, data.validation, data.test)]
    return Data("own", "classification", (5,), 3, *parts)
"""
)
WORDS = [w for w in RUN if not w.startswith(("model", "epochs", "batch.max"))]
WORDS += ["model._target_=own.Net", "epochs=4", "checkpoint.every=7"]
AUTO = [*WORDS, "batch.max_per_device=auto"]


def _same_run(one, other):
    """Two runs to the last bit, but for whether the size was found or given."""
    assert (one / "run/metrics.jsonl").read_text() == (other / "run/metrics.jsonl").read_text()
    for read in (lambda d: load_file(d / "model.safetensors"), lambda d: torch.load(d / "state.pt", weights_only=True)):
        found = [dict(flat(read(newest(directory)))) for directory in (one, other)]
        _same(*({name: value for name, value in of.items() if "max_per_device" not in name} for of in found))


@pytest.mark.parametrize(
    ("world", "more"),
    [
        (1, ("optimizer=adagrad", "optimizer.lr=0.1")),
        pytest.param(1, ("data._target_=own.read", "mixed_precision=bf16"), marks=pytest.mark.soak),
        (2, ("data._target_=own.read", "mixup.alpha=0.4", "optimizer=adagrad", "optimizer.lr=0.1")),
        pytest.param(1, ("data._target_=own.read", "num_workers=1"), marks=pytest.mark.soak),
        (2, ("strategy.static_graph=true", "log_grad_norm=true")),
        (2, ("model._target_=own.over_the_batch", "batch.global_size=5")),  # two and three samples: not one by one
        pytest.param(3, ("strategy.find_unused_parameters=true",), marks=pytest.mark.soak),
        pytest.param(2, ("strategy.compress=bf16", "loss.weight=[1.0,2.0,3.0]"), marks=pytest.mark.soak),
        pytest.param(
            2, ("exact_across_devices=true", "model._target_=launcher.models.mlp.MLP"), marks=pytest.mark.soak
        ),
    ],
    ids=str,
)
def test_a_run_whose_whole_share_fits_is_the_run_without_it(world, more, tmp_path):
    more = [*more, *(["model.hidden=[8]", "model.dropout=0.2"] if "exact_across_devices=true" in more else [])]
    named = {word.partition("=")[0] for word in more}
    words = [w for w in WORDS if w.partition("=")[0] not in named]
    auto, whole = place(tmp_path / "auto", SCARCE), place(tmp_path / "whole", SCARCE)
    train([*words, *more, "batch.max_per_device=auto"], auto, world, {"ROOM": "100"}).ok(90)
    train([*words, *more], whole, world, {"ROOM": "100"}).ok(90)
    assert json.loads((auto / "run/batch.json").read_text())["max_per_device"] in (3, 4, 5, 7, 14)
    assert not (whole / "run/batch.json").exists() and len(rows(auto / "run")) > 5
    _same_run(auto, whole)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("second", 2),
        pytest.param("forward", 2, marks=pytest.mark.soak),
        pytest.param("backward", 2, marks=pytest.mark.soak),
        pytest.param("evaluation", 2, marks=pytest.mark.soak),
    ],
)
def test_every_rank_takes_what_the_scarcest_can_hold_and_none_waits_for_another(where, found, tmp_path):
    """Where the second micro-batch of an update fails, beside the gradients of the first, or an evaluation of four."""
    environment = {"WHERE": where} | ({"ROOM": "8"} if where == "evaluation" else {})
    auto, given = place(tmp_path / "auto", SCARCE), place(tmp_path / "given", SCARCE)
    run = train(AUTO, auto, 2, environment).ok(90)
    assert f"micro-batches of at most {found}" in run.out() or f"micro-batches of {found}" in run.out(), run.out()
    train([*WORDS, f"batch.max_per_device={found}"], given, 2, environment).ok(90)
    _same_run(auto, given)
    if where == "backward":
        advice = train([*WORDS, "batch.max_per_device=5"], place(tmp_path / "five", SCARCE), 2, environment).wait()
        assert all(status == 1 for status in advice.status)
        assert "batch.max_per_device=2" in advice.err(0) + advice.err(1)


def test_what_was_found_stays_when_a_run_is_killed_before_its_first_checkpoint(tmp_path):
    """It goes on where there is room for more, and ends with the bits of one that was never killed."""
    calm, killed = place(tmp_path / "calm", SCARCE), place(tmp_path / "killed", SCARCE)
    train(AUTO, calm).ok(60)
    assert train(AUTO, killed, 1, {"KILL": "24"}).wait(60).status == [-9]
    assert json.loads((killed / "run/batch.json").read_text()) == {"max_per_device": 2}
    assert not [*(killed / "run").glob("checkpoints/step_*")]
    train(AUTO, killed, 1, {"ROOM": "100"}, name="io1").ok(60)
    _same_run(calm, killed)
    # Begun anew by other settings, it is forgotten
    other = place(tmp_path / "other", SCARCE)
    assert train(AUTO, other, 1, {"KILL": "24"}).wait(60).status == [-9]
    train([*AUTO, "seed=5"], other, 1, {"ROOM": "100"}, name="io1").ok(60)
    assert json.loads((other / "run/batch.json").read_text()) == {"max_per_device": 14}


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
    ],
)
def test_every_library_is_understood_that_has_no_memory(text):
    assert is_out_of_memory(RuntimeError(text)) and not is_out_of_memory(ValueError(text))
    assert is_out_of_memory(torch.OutOfMemoryError("of any words"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_real_allocation_that_fails_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
