"""The promises of a run, held for combinations of settings in place of one setting at a time.

    python tests/combinations.py --count 500 --seed 7

Each combination is trained for some updates of a tiny model by the real program, in processes that are forked from a
warm one. Any two values of any two factors come together in some combination (pairwise testing: Cohen et al. 1997, The
AETG system, doi:10.1109/32.605761). For each of them:

- a run that goes on from a checkpoint in its middle ends with the bits of the one that went through: weights,
  optimizer, moving average, record;
- one process, or several where it is one, with micro-batches of another size, gives the same record but for rounding,
  where nothing random belongs to a rank; with exact_across_devices the same bits;
- the losses of the first updates are those of a plain loop in PyTorch (plain_loop.py), wherever that can say them.

A combination that the launcher refuses must be refused in a sentence. A failure prints the command that repeats it.
"""

import argparse
import copy
import functools
import itertools
import json
import math
import multiprocessing.process
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import conftest  # noqa: F401  # what a test run sets up
import plain_loop
import torch
from omegaconf import OmegaConf
from processes import CONTEXT, start, without_pictures
from safetensors.torch import load_file

from launcher.config import composition
from launcher.config.command_line import parse_arguments
from launcher.config.composed import Composed
from launcher.core.errors import ConfigError

FIXED = [
    "seed=3", "epochs=3", "threads=1", "trackers=[]", "checkpoint.every=2", "checkpoint.keep=1000",
    "wandb.mode=disabled", "data._target_=combination_parts.load", "device=cpu",
]  # fmt: skip
NOTHING: tuple[str, ...] = ()

# Factor to value to its words on the command line. The first value of each is the default.
FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {
        "images": ("+data.kind=images",),
        "vectors": ("+data.kind=vectors",),
        "augmented": ("+data.kind=images", "+data.augment=true"),
        "dataset": ("+data.kind=images", "+data.source=dataset", "+data.augment=true", "num_workers=0"),
        "workers": ("+data.kind=images", "+data.source=dataset", "+data.augment=true", "num_workers=2"),
        "batched": ("+data.kind=images", "+data.source=batched", "num_workers=0"),
        "numbers": ("+data.kind=numbers",),
        "tokens": ("+data.kind=tokens",),
        "scenes": ("+data.kind=scenes",),
    },
    "task": {
        "auto": NOTHING,
        "distillation": (
            "task=distillation",
            "task.teacher.run_dir=none",
            "task.teacher._target_=combination_parts.Teacher",
        ),
        "masked": ("task=masked", "task.share=0.4"),
        "agree": ("task._target_=combination_parts.Agree",),
    },
    "model": {
        "cnn": ("model=cnn", "model.channels=[8,16]", "model.dense=8", "model.dropout=0.0"),
        "mlp": ("model=mlp", "model.hidden=[12,12]"),
        "linear": ("model=linear",),
        "resnet": ("model=resnet", "model.depth=8", "model.width=8"),
        "batchnorm": ("model._target_=combination_parts.Normalised",),
        "timm": ("model=timm", "model.name=test_vit", "+model.options={img_size:8,patch_size:4,depth:2}"),
        "transformer": ("model=transformer", "model.width=16", "model.layers=2", "model.heads=2"),
        "pixels": ("model._target_=combination_parts.Pixels",),
    },
    "dropout": {"none": NOTHING, "dropout": ("model.dropout=0.2",), "drop_rate": ("model.drop_rate=0.2",)},
    "loss": {
        "auto": ("loss=auto",),
        "cross_entropy": ("loss=cross_entropy",),
        "cross_entropy, weights": (
            "loss=cross_entropy",
            "loss.weight=[1.0,0.5,2.0,3.0]",
        ),
        "cross_entropy, balanced, smooth": ("loss.weight=balanced", "loss.label_smoothing=0.1"),
        "focal": ("loss=focal",),
        "focal, balanced": ("loss=focal", "loss.alpha=balanced", "loss.gamma=0.5"),
        "multi_margin": ("loss=multi_margin", "loss.weight=[1.0,0.5,2.0,3.0]", "loss.p=2"),
        "binary_cross_entropy": ("loss=binary_cross_entropy", "loss.pos_weight=[1.0,0.5,2.0,3.0]"),
        "mse": ("loss=mse",),
        "l1": ("loss=l1",),
        "huber": ("loss=huber", "loss.delta=0.3"),
    },
    "optimizer": {
        "sgd": ("optimizer.lr=0.03",),
        "nesterov": ("optimizer.lr=0.03", "optimizer.nesterov=true", "optimizer.weight_decay=0.1"),
        "adam": ("optimizer=adam", "optimizer.weight_decay=0.01"),
        "amsgrad": ("optimizer=adam", "optimizer.amsgrad=true"),
        "adamw": ("optimizer=adamw", "optimizer.weight_decay=0.1"),
        "adagrad": ("optimizer=adagrad", "optimizer.initial_accumulator_value=0.1"),
        "rmsprop": ("optimizer=rmsprop", "optimizer.lr=0.0001", "optimizer.momentum=0.9", "optimizer.centered=true"),
        "lion": ("optimizer=lion",),
        "muon": ("optimizer=muon", "optimizer.adamw_lr=0.002"),
    },
    "decay": {"all": NOTHING, "matrices": ("decay_bias_and_norm=false",)},
    "scheduler": {
        "cosine": NOTHING,
        "constant": ("scheduler=constant",),
        "step, epoch": ("scheduler=step", "scheduler.interval=epoch", "scheduler.step_size=1", "scheduler.gamma=0.5"),
        "step, step": ("scheduler=step", "scheduler.interval=step", "scheduler.step_size=2", "scheduler.gamma=0.7"),
        "linear, epoch": ("scheduler=linear", "scheduler.interval=epoch"),
        "one_cycle": ("scheduler=one_cycle",),
        "one_cycle, momentum": ("scheduler=one_cycle", "scheduler.cycle_momentum=true"),
        "plateau": ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "scheduler.threshold=0.2"),
    },
    "warmup": {
        "none": NOTHING,
        "steps": ("scheduler.warmup=3",),
        "share": ("scheduler.warmup=0.2",),
        "epochs": ("scheduler.warmup=0.5epochs",),
    },
    "size": {
        "16": ("batch.global_size=16",),
        "10": ("batch.global_size=10",),
        "all": ("batch.global_size=1000",),
        "5, linear": ("batch.global_size=5", "batch.lr_scaling=linear", "batch.base_size=10"),
        "23, sqrt": ("batch.global_size=23", "batch.lr_scaling=sqrt", "batch.base_size=16"),
    },
    "micro": {
        "whole": NOTHING,
        "3": ("batch.max_per_device=3",),
        "1": ("batch.max_per_device=1",),
        "auto": ("batch.max_per_device=auto",),
    },
    "precision": {"no": NOTHING, "bf16": ("mixed_precision=bf16",)},
    "clip": {
        "none": NOTHING,
        "norm": ("clip_grad_norm=0.5",),
        "value": ("clip_grad_value=0.02",),
        "logged": ("log_grad_norm=true",),
    },
    "ema": {"none": NOTHING, "ema": ("ema_decay=0.8",)},
    "layer_decay": {"none": NOTHING, "decay": ("layer_decay=0.7",)},
    "param_groups": {"none": NOTHING, "bias": ("param_groups=[{match: ['*bias'], lr: 0.004, weight_decay: 0.0}]",)},
    "freeze": {"none": NOTHING, "bias": ("freeze=['*bias']",), "most": ("freeze=['*.0.*']",)},
    "recompute": {"none": NOTHING, "all": ("activation_checkpointing=['*']",)},
    "strategy": {
        "ddp": NOTHING,
        "static": ("strategy.static_graph=true",),
        "unused": ("strategy.find_unused_parameters=true", "strategy.gradient_as_bucket_view=false"),
        "compressed": ("strategy.compress=bf16",),
        "fsdp": ("strategy=fsdp",),
        "fsdp, whole": ("strategy=fsdp", "strategy.accumulate_whole=true", "strategy.meta_init=false"),
        "fsdp, kept": ("strategy=fsdp", "strategy.reshard_after_forward=false"),
    },
    "exact": {"no": NOTHING, "exact": ("exact_across_devices=true",)},
    "layout": {"usual": NOTHING, "channels_last": ("channels_last=true",)},
    "sampling": {
        "shuffle": NOTHING,
        "balanced": ("sampling=balanced",),
        "blocked": ("sampling=blocked",),
    },
    "limit": {"none": NOTHING, "2": ("limit_batches=2",)},
    "mixup": {
        "none": NOTHING,
        "mixup": ("mixup.alpha=0.4",),
        "cutmix": ("mixup.cutmix_alpha=1.0",),
        "both": ("mixup.alpha=0.4", "mixup.cutmix_alpha=1.0", "mixup.prob=0.7", "mixup.switch_prob=0.4"),
    },
    "logged": {"1": ("log_every=1",), "3": ("log_every=3",), "epoch": ("log_every=epoch",)},
    "evaluated": {
        "epoch": NOTHING,
        "5": ("eval_every=5",),
        "never": ("eval_every=null", "checkpoint.best=null"),
        "stopping": ("early_stopping.metric=eval/loss", "early_stopping.patience=2", "early_stopping.min_delta=0.05"),
    },
    "divergence": {
        "none": NOTHING,
        "rollback": ("divergence.action=rollback", "+data.poisoned=true"),
    },
    "hooks": {"none": NOTHING, "probe": ("hooks=[{_target_: combination_parts.Probe}]",)},
    "ranks": {"1": NOTHING, "2": NOTHING, "3": NOTHING, "4": NOTHING},
}

# Settings that are no factor, and why.
NOT_A_FACTOR = {
    "seed": "names the draws, of which any are as good as others",
    "epochs": "the run's length; early stopping ends it earlier",
    "max_steps": "the same",
    "max_time": "stopping has tests of its own (test_stopping.py)",
    "pruning": "a stop at an evaluation, which a search asks for: test_search.py",
    "init_from": "weights to begin with: test_finetune.py",
    "adapter": "needs peft, which takes seconds to import: test_adapters.py",
    "compile": "half a minute each on a CPU: test_train.py",
    "test_time_flip": "the test split alone: test_mirrored.py",
    "canonical_shards": "4, which 1, 2 and 4 ranks divide",
    "float32_matmul_precision": "changes nothing on a CPU",
    "deterministic": "changes no kernel of these on a CPU: test_numerics.py",
    "device": "the CPU",
    "threads": "bits are promised at equal threads: 1",
    "num_workers": "part of the factor data",
    "timeout": "test_watchdog.py",
    "profile": "observes",
    "check": "ends before the first update",
    "metrics": "test_named.py",
    "trackers": "observe: test_wandb.py",
    "wandb": "observes: test_wandb.py",
    "checkpoint": "every 2 updates, which resuming needs; the rest keeps files: test_checkpoint.py",
    "divergence.max_rollbacks": "when a run gives up: test_stopping.py",
    "early_stopping.mode": "which way a metric is better: test_early_stopping.py",
    "strategy.name": "the factor strategy",
    "strategy.bucket_cap_mb": "how DDP cuts what travels",
    "strategy.broadcast_buffers": "DDP's own: BatchNorm's buffers are rank 0's",
    "strategy.block": "names what is found by itself here: test_sharded.py",
    "optimizer.eps": "a number in a formula of torch's",
    "optimizer.fused": "chooses among kernels: test_optimizer.py",
    "optimizer.foreach": "the same",
    "loss.gamma": "part of the factor loss",
    "data": "the data of a person's own: sources have tests of their own",
    "model.hidden": "the model's size",
}
# Options that need what takes long to build, or data of their own: test_library.py and files of their names.
ELSEWHERE = {"model": ("torchvision", "transformers", "encoder", "unet")}

# Two values that the launcher refuses together, and a word of its sentence.
IMAGES = ("images", "augmented", "dataset", "workers", "batched")
CLASSES = (*IMAGES, "vectors")
REGRESSIONS = ("mse", "l1", "huber")
LOSSES = tuple(loss for loss in FACTORS["loss"] if loss != "auto")
OTHER_MODELS = tuple(model for model in FACTORS["model"] if model != "pixels")
FSDP = ("fsdp", "fsdp, whole", "fsdp, kept")
Refused = tuple[str, tuple[str, ...], str, tuple[str, ...], str]
REFUSED: list[Refused] = [
    ("data", ("vectors", "numbers"), "model", ("cnn", "resnet", "timm"), "takes images"),
    ("data", (*CLASSES, "numbers"), "model", ("transformer",), "block"),
    ("data", ("tokens",), "model", ("cnn", "mlp", "linear", "resnet", "batchnorm", "timm"), "needs"),
    ("data", CLASSES, "loss", REGRESSIONS, "does not fit data of the task classification"),
    ("data", ("numbers",), "loss", tuple(x for x in FACTORS["loss"] if x not in (*REGRESSIONS, "auto")), "loss"),
    ("data", ("tokens",), "loss", (*REGRESSIONS, "binary_cross_entropy"), "does not fit"),
    ("data", ("tokens",), "loss", ("cross_entropy, weights", "cross_entropy, balanced, smooth", "focal, balanced",
                                   "multi_margin"), "all weigh the same"),
    ("data", ("numbers", "tokens"), "sampling", ("balanced",), "sampling=balanced"),
    ("data", ("images", "vectors", "augmented", "numbers", "tokens"), "sampling", ("blocked",), "sampling=blocked"),
    ("data", ("numbers", "tokens"), "mixup", ("mixup", "cutmix", "both"), "only classes can be mixed"),
    ("data", ("vectors",), "mixup", ("cutmix", "both"), "no images"),
    ("data", (*CLASSES, "numbers", "tokens"), "model", ("pixels",), "model"),
    ("data", ("scenes",), "model", tuple(model for model in OTHER_MODELS if model != "transformer"), "height, width"),
    ("data", ("scenes",), "model", ("transformer",), "block"),
    ("data", ("scenes",), "loss", (*REGRESSIONS, "binary_cross_entropy", "multi_margin"), "does not fit"),
    ("data", ("scenes",), "loss", ("cross_entropy, balanced, smooth", "focal, balanced"), "no classes to balance"),
    ("data", ("scenes",), "sampling", ("balanced",), "sampling=balanced"),
    ("data", ("scenes",), "mixup", ("mixup", "cutmix", "both"), "only classes can be mixed"),
    ("data", ("numbers", "tokens", "scenes"), "task", ("distillation",), "needs the scores of classes"),
    ("data", ("tokens",), "task", ("masked",), "hides numbers, and the samples are tokens"),
    ("model", ("pixels",), "task", ("masked",), "a number for each of theirs"),
    ("task", ("masked", "agree"), "loss", LOSSES, "has a loss of its own"),
    ("task", ("masked", "agree"), "mixup", ("mixup", "cutmix", "both"), "takes no mixed classes"),
    ("task", ("distillation",), "loss", ("binary_cross_entropy",), "needs the scores of classes"),
    ("model", ("linear", "resnet", "batchnorm", "timm", "pixels"), "dropout", ("dropout",), "dropout"),
    ("model", (*OTHER_MODELS[:5], "transformer", "pixels"), "dropout", ("drop_rate",), "drop_rate"),
    ("model", ("linear", "resnet", "batchnorm", "pixels"), "optimizer", ("muon",), "no hidden 2-d weight"),
    ("model", ("linear", "mlp"), "freeze", ("most",), "matches no parameter"),
    ("freeze", ("bias",), "param_groups", ("bias",), "matches frozen parameters alone"),
    ("size", ("all",), "warmup", ("steps",), "the whole run has 3"),
    ("model", ("batchnorm",), "exact", ("exact",), "BatchNorm"),
    ("model", ("batchnorm",), "recompute", ("all",), "running statistics"),
    ("scheduler", ("plateau",), "evaluated", ("never",), "eval_every=null never evaluates"),
    ("scheduler", ("one_cycle, momentum",), "optimizer", ("adagrad", "muon"), "refuses"),
    ("strategy", FSDP, "exact", ("exact",), "strategy=fsdp"),
    ("strategy", FSDP, "layout", ("channels_last",), "strategy=fsdp"),
    ("strategy", FSDP, "micro", ("auto",), "strategy=fsdp"),
    ("strategy", FSDP, "optimizer", ("muon",), "strategy=fsdp"),
    ("exact", ("exact",), "ranks", ("3",), "canonical_shards=4 cannot be dealt to 3 devices"),
]  # fmt: skip

PATIENCE = 20  # refusals after which a pair is not tried any more
LOCK = threading.Lock()  # Hydra and the generator of torch are one for all threads
STARTING = threading.Lock()
Combination = dict[str, str]  # factor to value
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(combination: Combination) -> set[Pair]:
    """Every two values that come together in a combination."""
    return set(itertools.combinations(sorted(combination.items()), 2))


def refused_pairs() -> dict[Pair, str]:
    """Pairs that are refused, and a word of the sentence."""
    found = {}
    for one, values, other, others, word in REFUSED:
        for value, second in itertools.product(values, others):
            first, last = sorted([(one, value), (other, second)])
            found[first, last] = word
    return found


class Generator:
    """Draws combinations, those first that bring values together which have not met yet.

    Args:
        seed: Of the choice.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.refused = refused_pairs()
        values = [(factor, value) for factor, of_factor in FACTORS.items() for value in of_factor]
        every = {pair for pair in itertools.combinations(sorted(values), 2) if pair[0][0] != pair[1][0]}
        self.all = every - self.refused.keys()
        self.open = set(self.all)
        self.times_refused: Counter[Pair] = Counter()

    def draw(self, limits: Mapping[str, Sequence[str]]) -> Combination:
        """The next combination, without a refused pair.

        Args:
            limits: Factors to the values that they may have; a factor that is left out may have any.
        """
        worth = self.open - self.never()  # else these would be drawn for ever
        fitting = [pair for pair in worth if all(value in limits.get(factor, (value,)) for factor, value in pair)]
        for _ in range(100):
            pair = self.random.choice(sorted(fitting)) if fitting else ()
            for _ in range(20):
                if (found := self._complete(dict(pair), limits)) is not None:
                    return found
            fitting.remove(pair)  # a third value keeps the two apart
            if not limits:
                self.open.discard(pair)
                self.all.discard(pair)
        raise AssertionError(f"nothing goes together with {sorted(fitting)[:3]}")

    def _complete(self, chosen: Combination, limits: Mapping[str, Sequence[str]]) -> Combination | None:
        """A combination with these values, or None where the others did not fit this time."""
        factors = [factor for factor in FACTORS if factor not in chosen]
        self.random.shuffle(factors)
        for factor in factors:
            values = [v for v in limits.get(factor, FACTORS[factor]) if self._fits(chosen, factor, v)]
            if not values:
                return None
            self.random.shuffle(values)
            chosen[factor] = max(values, key=lambda value: self._new(chosen, factor, value))
        return {factor: chosen[factor] for factor in FACTORS}

    def ran(self, combination: Combination) -> None:
        """Count the pairs of a combination that was not refused."""
        self.open -= pairs_of(combination)

    def was_refused(self, combination: Combination) -> None:
        """Count the pairs of a combination that was."""
        self.times_refused.update(pairs_of(combination) & self.open)

    def never(self) -> set[Pair]:
        """Pairs that were refused whatever they came together with, often enough to believe it."""
        return {pair for pair in self.open if self.times_refused[pair] >= PATIENCE}

    def _pairs(self, chosen: Combination, factor: str, value: str) -> set[Pair]:
        return {tuple(sorted([(factor, value), other])) for other in chosen.items()}  # type: ignore[misc]

    def _fits(self, chosen: Combination, factor: str, value: str) -> bool:
        return not any(pair in self.refused for pair in self._pairs(chosen, factor, value))

    def _new(self, chosen: Combination, factor: str, value: str) -> int:
        return len(self._pairs(chosen, factor, value) & self.open)


def words(combination: Combination) -> list[str]:
    """The command line of a combination, without its run directory."""
    return [*FIXED, *(word for factor, value in combination.items() for word in FACTORS[factor][value])]


def command(combination: Combination, world: int) -> str:
    """What a person types to repeat it, in the repository."""
    quoted = [f'"{word}"' if set(word) & set("[]*'") else word for word in words(combination)]
    start = "python" if world == 1 else f"torchrun --nproc_per_node {world}"
    return f"PYTHONPATH=tests {start} launcher/train.py {' '.join(quoted)}"


# --- Running ---------------------------------------------------------------------------------------------------------


def _train(packed: bytes, server: str, around: Callable[[], AbstractContextManager[Any]]) -> None:
    """One rank of a run, in a process forked from the warm one.

    Pictures are left out, which are half of the time, and processes that load data come from the warm one too.
    """
    from launcher.trial import train_composed

    forkserver._forkserver._forkserver_address = server
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    without_pictures()
    with around():
        sys.exit(train_composed(*pickle.loads(packed)))


def warm_server() -> str:
    """Where the process is asked that all others are forked from."""
    CONTEXT.set_forkserver_preload(["processes_preloaded", "combinations", "timm", "torch.distributed.tensor"])
    forkserver.ensure_running()
    return forkserver._forkserver._forkserver_address


class Refusal(Exception):
    """The launcher refuses a combination, in these words."""


class Runner:
    """Trains combinations in processes.

    Args:
        directory: For all that is written.
        around: Makes what each run runs within.
    """

    def __init__(self, directory: Path, around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.directory, self.around, self.count = directory, around, itertools.count()

    def run(self, combination: Combination, path: Path, world: int, **changes: str) -> Path:
        """Train a combination in a run directory, or go on there.

        Args:
            combination: What to train.
            path: The run directory.
            world: Number of ranks.
            changes: Factors whose values differ from the combination's.

        Raises:
            Refusal: The launcher does not want it.
            AssertionError: It failed.
        """
        argv = words(combination | changes)
        settings = composed(tuple(argv))
        hydra = copy.deepcopy(settings.hydra)
        OmegaConf.update(hydra, "run.dir", str(path))
        packed = pickle.dumps((settings.plain(), hydra, [*argv, f"hydra.run.dir={path}"]))
        with STARTING:
            run = start(_train, (packed, warm_server(), self.around), self.directory / f"io{next(self.count)}", world)
            # A start in another thread would look after these too, and of the two who ask one finds no exit status
            multiprocessing.process._children.difference_update(run.processes)
        run.processes[0].join(120)
        if run.status[0] == 2:  # the others give it time to speak
            for process in run.processes[1:]:
                process.kill()
            run.wait()
            raise Refusal(run.err(0))
        run.wait(120)
        errors = "".join(run.err(rank) for rank in range(world))
        assert run.status == [0] * world, f"status {run.status}: {errors}"
        shutil.rmtree(run.directory)
        return path


@functools.lru_cache(64)  # the same for a run, the one that goes on and the plain loop
def composed(argv: tuple[str, ...]) -> Composed:
    """The checked config of a command line.

    Raises:
        Refusal: There is none.
    """
    try:
        with LOCK, composition.opened(parse_arguments([]), "train") as (hydra, name):
            return composition.compose(hydra, name, list(argv))
    except ConfigError as error:
        raise Refusal(f"error: {error}\n") from error


# --- What is held ----------------------------------------------------------------------------------------------------


def checkpoints(path: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((path / "checkpoints").glob("step_*"))


def differing(tree, other, place="") -> list[str]:
    """Where two trees of tensors and plain values have not the same bits."""
    if isinstance(tree, dict) and isinstance(other, dict) and tree.keys() == other.keys():
        return [found for key in tree for found in differing(tree[key], other[key], f"{place}.{key}")]
    if isinstance(tree, list | tuple) and isinstance(other, list | tuple) and len(tree) == len(other):
        pairs = enumerate(zip(tree, other, strict=True))
        return [found for i, (one, two) in pairs for found in differing(one, two, f"{place}.{i}")]
    if isinstance(tree, torch.Tensor) and isinstance(other, torch.Tensor):
        same = tree.shape == other.shape and tree.dtype == other.dtype
        return [] if same and tree.numpy().tobytes() == other.numpy().tobytes() else [place]
    same = tree == other or (tree != tree and other != other)
    return [] if same else [f"{place} ({str(tree)[:60]} and {str(other)[:60]})"]


def not_the_same_bits(one: Path, other: Path, but: tuple[str, ...] = ()) -> list[str]:
    """What two runs ended with that is not the same in every bit: weights, state, record."""
    (mine, theirs), found = (checkpoints(path)[-1] for path in (one, other)), []
    if mine.name != theirs.name:
        return [f"ended at {mine.name} and {theirs.name}"]
    found += differing(*(load_file(path / "model.safetensors") for path in (mine, theirs)), "weights")
    states = [torch.load(path / "state.pt", weights_only=True) for path in (mine, theirs)]
    for state in states:
        for name in but:
            state.pop(name)
    found += differing(*states, "state")
    if (one / "metrics.jsonl").read_text() != (other / "metrics.jsonl").read_text():
        found.append("the record")
    return found if len(found) < 6 else [*found[:2], f"and {len(found) - 3} more", found[-1]]


def rows(path: Path) -> list[dict[str, float]]:
    """The record of a run."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def not_close(
    one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float, names: tuple[str, ...]
) -> list[str]:
    """Where two records differ by more than a share of the value, the values whose names begin so."""
    if [row["step"] for row in one] != [row["step"] for row in other]:
        return [f"rows at steps {[row['step'] for row in one]} and {[row['step'] for row in other]}"]
    found = []
    for row, expected in zip(one, other, strict=True):
        for name in sorted(row.keys() | expected.keys()):
            mine, theirs = row.get(name, math.nan), expected.get(name, math.nan)
            if name.startswith(names) and not math.isclose(mine, theirs, rel_tol=tolerance, abs_tol=tolerance / 10):
                found.append(f"{name} at step {row['step']}: {mine} and {theirs}")
    return found[:3]


def is_the_same_anywhere(combination: Combination) -> bool:
    """Whether nothing random, and no statistic, belongs to what one rank or one micro-batch sees."""
    by_rank = combination["dropout"] != "none" or combination["model"] == "batchnorm" or combination["task"] == "masked"
    return not by_rank and combination["strategy"] != "compressed"


FIGURES = tuple(f"{part}/{name}" for part in ("train", "eval") for name in ("loss", *plain_loop.TERMS))
OF_ONE_SIZE = ("lion", "muon", "rmsprop")  # whose steps are as large where a gradient is nearly zero


def comparable(combination: Combination, path: Path) -> list[dict[str, float]]:
    """The rows of a run in which rounding has not grown into something else yet, as it does in bfloat16."""
    return [row for row in rows(path) if combination["precision"] == "no" or row["step"] <= 6]


def tolerance_of(combination: Combination) -> float:
    """How much of a loss may be rounding after some updates."""
    if combination["precision"] == "bf16":
        return 0.05
    if combination["optimizer"] in OF_ONE_SIZE:
        return 0.02  # the sign of a gradient that is nearly zero is rounding, and steps of one size follow from it
    return 1e-3


def faults_of(combination: Combination, runner: Runner, seed: int) -> list[str]:
    """Everything that is wrong with a combination.

    Raises:
        Refusal: The launcher does not want it.
    """
    chosen, world = random.Random(seed), int(combination["ranks"])
    place = Path(tempfile.mkdtemp(dir=runner.directory))
    try:
        straight = runner.run(combination, place / "straight", world)
        found = []
        # As a kill in the middle leaves it: from there on it has to come out the same
        resumed, saved = place / "resumed", checkpoints(straight)
        middle = saved[chosen.randrange(len(saved) - 1)] if len(saved) > 1 else None
        if middle is not None:
            shutil.copytree(straight, resumed)
            for name in ("summary.json", "evaluation.json", "report.html"):
                (resumed / name).unlink(missing_ok=True)
            for later in checkpoints(resumed):
                if later.name > middle.name:
                    shutil.rmtree(later)
            runner.run(combination, resumed, world)
            found += [f"resumed from {middle.name}: {what}" for what in not_the_same_bits(resumed, straight)]
        exact = combination["exact"] == "exact"
        other = 1 if world > 1 else chosen.choice([2, 4] if exact else [2, 3, 4])
        changes = {} if exact else {"micro": chosen.choice(["whole", "3", "1"])}
        if is_the_same_anywhere(combination) or exact:
            try:
                elsewhere = runner.run(combination, place / "elsewhere", other, **changes)
            except Refusal as refusal:
                if "per update cannot be shared" not in str(refusal):
                    raise
            else:
                how = f"{other} ranks{', micro ' + changes['micro'] if changes else ''}"
                if exact:
                    different = not_the_same_bits(elsewhere, straight, but=("random",))
                else:
                    names = (*FIGURES, "lr", "probe/")
                    mine, theirs = (comparable(combination, path) for path in (elsewhere, straight))
                    different = not_close(mine, theirs, tolerance_of(combination), names)
                found += [f"{how}: {what}" for what in different]
        found += [f"a plain loop: {what}" for what in unlike_a_plain_loop(combination, straight)]
        return found
    finally:
        shutil.rmtree(place, ignore_errors=True)


def unlike_a_plain_loop(combination: Combination, straight: Path) -> list[str]:
    """Where the first rows of a run are not those of a plain loop; nothing where that cannot say them."""
    if not plain_loop.can_say(combination):
        return []
    settings = composed(tuple(words(combination))).plain()
    with LOCK:
        expected = plain_loop.losses(settings, combination)
    record = [row for row in comparable(combination, straight) if row["step"] <= plain_loop.STEPS and "lr" in row]
    expected = expected[: len(record)]
    return not_close(record, expected, tolerance_of(combination), FIGURES)


# --- All of them -----------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a number of combinations.

    Attributes:
        ran: How many were trained.
        said: How many of them a plain loop could say.
        refusals: Sentences of those that were refused, with how often.
        failures: Commands of those in which something was wrong, and what.
        pairs: How many pairs of values came together, of how many that are not refused.
        never: Pairs that were refused whatever they came together with.
    """

    ran: int = 0
    said: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    pairs: tuple[int, int] = (0, 0)
    never: set[Pair] = field(default_factory=set)


def is_a_sentence(refusal: str) -> bool:
    """Whether wrong input was answered as it should be: one message that begins with a setting, no traceback."""
    named = re.match(r"error: [\w.]+(=|: | is | are | has )", refusal)
    return named is not None and "Traceback" not in refusal and refusal.count("\n") == 1


def try_out(count: int, seed: int, at_once: int = 2, show=lambda text: None) -> Outcome:
    """Try combinations out.

    Args:
        count: How many to train, beside those that are refused.
        seed: Of their choice.
        at_once: How many to train beside each other.
        show: Called with each failure.
    """
    generator, outcome = Generator(seed), Outcome()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        runner = Runner(Path(directory))

        def one(number: int) -> None:
            limits = ({}, plain_loop.SAYS, plain_loop.SAYS | plain_loop.ALONE)[number % 3]
            combination = generator.draw(limits)
            try:
                found = faults_of(combination, runner, seed * 1000 + number)
            except Refusal as refusal:
                sentence = str(refusal)
                outcome.refusals[sentence.partition(":")[2].strip()[:160]] += 1
                generator.was_refused(combination)
                if is_a_sentence(sentence):
                    return
                found = [f"refused, but not in a sentence: {sentence}"]
            except Exception:  # of the loop beside it as well: what it cannot compute is a failure too
                found = [traceback.format_exc()]
            outcome.ran += 1
            outcome.said += plain_loop.can_say(combination)
            generator.ran(combination)
            if found:
                repeat = command(combination, int(combination["ranks"]))
                outcome.failures[repeat] = found
                show("\n  ".join([repeat, *found]))

        with ThreadPoolExecutor(at_once) as pool:
            numbers, running = itertools.count(), set()
            while outcome.ran < count:
                running |= {
                    pool.submit(one, next(numbers)) for _ in range(min(at_once, count - outcome.ran) - len(running))
                }
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
    outcome.never = generator.never()
    outcome.pairs = (len(generator.all) - len(generator.open), len(generator.all))
    return outcome


def main() -> int:
    """Print what was found; 1 where something was."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="combinations to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"), help="of their choice")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    begun = time.monotonic()
    outcome = try_out(asked.count, asked.seed, show=lambda text: print(f"WRONG {text}", flush=True))
    for sentence, number in outcome.refusals.most_common():
        print(f"refused {number} times: {sentence}")
    for pair in sorted(outcome.never):
        print(f"refused each time: {pair[0]} with {pair[1]}")
    print(
        f"{outcome.ran} combinations trained, {outcome.said} of them compared with a plain loop, "
        f"{outcome.refusals.total()} refused; {outcome.pairs[0]} of {outcome.pairs[1]} pairs of values; "
        f"{len(outcome.failures)} wrong; {time.monotonic() - begun:.0f} s"
    )
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
