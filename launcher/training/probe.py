"""`batch.max_per_device=auto`: the most samples that every device can see at once, found by trying.

What is tried is all that a run has in memory at a time: two updates by the trainer that will train, the second beside
the optimizer's state, each of two micro-batches where gradients are accumulated, with clipping, optimizer step and
moving average; and a batch of an evaluation. Nothing of it is left.

No rank says a word to another while one of them may run out of memory, since that one would leave the others waiting in
a collective. After each size there is one, the vote on it.
"""

import copy
import gc
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from launcher.batching.generators import generators_kept
from launcher.batching.plan import BatchPlan
from launcher.batching.stream import Batch, CanonicalStream, Stream, of_rank
from launcher.core.compat import own_tensors
from launcher.core.errors import ConfigError, is_out_of_memory
from launcher.core.files import read_json, write_json
from launcher.distributed.collectives import from_rank_0, sum_over_ranks
from launcher.tasks.mirrored import Mirrored
from launcher.training.advice import advice
from launcher.training.batch_norm import check_alone
from launcher.training.evaluation import EvaluationSettings, Evaluator
from launcher.training.progress import Progress
from launcher.training.trainer import Trainer
from launcher.training.tryout import copy_for_worker

if TYPE_CHECKING:
    from launcher.build import Parts

FILE = "batch.json"  # what was found, in the run directory


def fit_plan(trainer: Trainer, parts: "Parts", progress: Progress, path: Path, flip: bool) -> BatchPlan:
    """How batches are cut with `batch.max_per_device=auto`: as the run was begun, or as the device's memory allows.

    A new size is kept at once: other micro-batches mean other last bits, and a run that is killed before its first
    checkpoint may go on beside other processes, with less memory left for it.

    Args:
        trainer: That will train, before its first update.
        parts: What the run is made of, its plan not capped yet.
        progress: Of the run; keeps the size.
        path: Run directory.
        flip: Whether the test split is evaluated by two looks at each image.
    """
    ranks = trainer.ranks
    known = from_rank_0(progress.max_per_device or read_json(path / FILE).get("max_per_device"), ranks.world_size)
    if known is None:
        with advice(parts.plan, trainer):
            known = find_size(trainer, parts, flip)
        if ranks.rank == 0:
            write_json(path / FILE, {"max_per_device": known}, durable=True)
    progress.max_per_device = known
    return parts.plan.capped(known)


def find_size(trainer: Trainer, parts: "Parts", flip: bool) -> int:
    """The most samples that every device can see at once, the same on every rank: the share of one, its half, ...

    Raises:
        ConfigError: A single sample does not fit, the model's forward waits for other ranks, or a BatchNorm would get
            one sample alone.
    """
    ranks = trainer.ranks
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.SyncBatchNorm) and ranks.world_size > 1:
            raise ConfigError(
                f"batch.max_per_device=auto: {name} is a SyncBatchNorm, in which a device that runs out of memory "
                "would leave the others waiting. Give a number."
            )
    _warm_up(trainer, parts)
    size = parts.plan.micro_size
    while True:
        with untouched(trainer):
            good = fits(trainer, parts, parts.plan.capped(size), flip)
        (failed,) = sum_over_ranks([torch.tensor(float(not good), device=trainer.device)], ranks.world_size)
        if not failed.item():
            check_alone(trainer.model, parts.data, parts.plan.capped(size), size, parts.total_steps)
            return size
        if size == 1:
            raise ConfigError("batch.max_per_device=auto: not even one sample fits into the device's memory.")
        size = (size + 1) // 2


def _warm_up(trainer: Trainer, parts: "Parts") -> None:
    """Give DDP its first backward, in which it counts with `static_graph` how often each hook is called.

    It does so in any backward, also of the module alone (Reducer::autograd_hook, static_graph_first_iteration). The
    fewest samples are enough for it: one, or as many as leave a batch normalisation two on every device.
    """
    least = 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trainer.model.modules()) else 1
    plans = (parts.plan.capped(size) for size in range(least, parts.plan.micro_size))
    plan = next((plan for plan in plans if plan.smallest(1)[0] >= least), parts.plan)
    with generators_kept():
        trainer.warm_up(_samples(trainer, parts, plan))


def _samples(trainer: Trainer, parts: "Parts", plan: BatchPlan) -> Stream | CanonicalStream:
    split, ranks = copy_for_worker(parts.data.train), trainer.ranks
    return of_rank(split, plan, trainer.settings.seed, ranks, trainer.device, 0, parts.sampler, parts.kind)


def fits(trainer: Trainer, parts: "Parts", plan: BatchPlan, flip: bool) -> bool:
    """Try two updates and a batch of an evaluation, inside of `untouched`: whether this rank's memory was enough."""
    data, ranks = parts.data, trainer.ranks
    step = trainer.rollbacks.careful_until  # the gradient of none from here on is looked at, which takes all ranks
    split = copy_for_worker(max(data.validation, data.test, key=len))
    model = Mirrored(trainer.eval_model) if flip else trainer.eval_model
    asked = itertools.count()
    try:
        # It stays open: the next ones are on their way beside an update.
        batches = _samples(trainer, parts, plan).batches(0, 2)
        batch = next(batches)
        of_shard = [[*micros] for _, micros in itertools.groupby(batch.micros, key=lambda micro: micro.shard)]
        largest = [sorted(micros, key=lambda micro: -micro.size)[:2] for micros in of_shard]
        for _ in range(2):  # the first of them makes the optimizer's state, at its end
            trainer.step(Batch(step, batch.size, [*itertools.chain(*largest)]))
        how = EvaluationSettings(plan.evaluation_size(data.tokens), shards=plan.shards)
        evaluator = Evaluator(trainer.task, trainer.accelerator, replace(ranks, rank=0, world_size=1), how)
        evaluator.evaluate(model, split, lambda: next(asked) > 0)
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False


@contextmanager
def untouched(trainer: Trainer) -> Iterator[None]:
    """Let a trainer do what it likes, alone, and put everything back: to the last bit, and into the same memory.

    The copies are kept on the host, so that the device has as much left as it will have in training.
    """
    modules = list(dict.fromkeys([*trainer.forward.modules(), *trainer.eval_model.modules(), *trainer.task.modules()]))
    modes = [module.training for module in modules]
    buffers = [dict(own_tensors(module)[1]) for module in modules]  # a forward may put others in their place
    optimizer = trainer.optimizer
    groups = [
        copy.deepcopy({name: value for name, value in group.items() if name != "params"})
        for group in optimizer.param_groups
    ]
    states = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    owned = itertools.chain(*(module.parameters(recurse=False) for module in modules), *(b.values() for b in buffers))
    things = [*owned, *(value for state in states.values() for value in state.values())]
    tensors = {id(thing): thing for thing in things if isinstance(thing, Tensor)}  # each once
    kept = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in tensors.values()]
    cuda = [trainer.device] if trainer.device.type == "cuda" else []  # a CPU's generator is among those kept anyway
    with generators_kept(), torch.random.fork_rng(cuda), trainer.alone():
        try:
            yield
        finally:
            for module, mode, of_module in zip(modules, modes, buffers, strict=True):
                module.training = mode
                own_tensors(module)[1].clear()
                own_tensors(module)[1].update(of_module)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                for name in group.keys() - before.keys() - {"params"}:
                    del group[name]
                group.update(before)
            optimizer.state.clear()
            optimizer.state.update(states)
            with torch.no_grad():
                for tensor, copied in kept:
                    tensor.copy_(copied)
                    if isinstance(tensor, nn.Parameter):
                        tensor.grad = None
            # The next size, and other processes, shall find the memory free.
            if "torch._dynamo" in sys.modules:  # a model compiled at two sizes would be compiled for any from then on
                torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
