"""An evaluation: a model measured on a split, each sample exactly once at any number of ranks."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from launcher.batching.splits import Split, first_infinite
from launcher.batching.stream import in_order
from launcher.core.compat import tree_leaves, tree_map_only
from launcher.core.errors import BrokenFile, ConfigError
from launcher.distributed.collectives import at_rank_0, from_rank_0, sum_over_ranks, sum_over_shards
from launcher.distributed.pulse import pulse
from launcher.distributed.ranks import Ranks
from launcher.metrics.classification import ClassificationSums
from launcher.metrics.named import compute_metrics, make_metrics, try_metrics, update_metrics
from launcher.tasks.supervised import Supervised
from launcher.tasks.task import Task


@dataclass
class Evaluation:
    """What an evaluation found; the last two of a classification alone."""

    samples: int  # each counted once
    metrics: dict[str, float]  # loss, those of the task, and what the setting `metrics` names
    per_class_accuracy: list[float | None] | None = None  # share of each class that was found
    confusion: list[list[int]] | None = None  # rows: the true class, columns: the predicted one
    # Where they were asked for, on rank 0: `loss` and `weight`, and of a classification `correct`; [samples] each
    by_sample: dict[str, Tensor] | None = None

    def as_dict(self, part: str, class_names: list[str] | None) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "part": part,
            "samples": self.samples,
            "metrics": self.metrics,
            "class_names": class_names,
            "per_class_accuracy": self.per_class_accuracy,
            "confusion": self.confusion,
        }


@dataclass(frozen=True)
class EvaluationSettings:
    """How a split is read and measured."""

    batch_size: int  # most samples at once
    workers: int | str = 0  # processes that load samples which are not in memory
    metrics: Sequence[Any] = ()  # torchmetrics by name; they are computed on rank 0 over all samples in order
    shards: int | None = None  # that the split is cut into and whose sums are added in order; None: one per rank
    in_step: bool = False  # a forward takes all ranks: they then do equally many, and end together


class Evaluator:
    """Measures models, each sample exactly once at any number of ranks."""

    def __init__(self, task: Task, accelerator: Accelerator, ranks: Ranks, settings: EvaluationSettings) -> None:
        self.task, self.accelerator, self.ranks = task, accelerator, ranks
        self.settings, self.device = settings, accelerator.device
        self.shards = settings.shards or ranks.world_size

    @torch.no_grad()
    def evaluate(
        self,
        model: nn.Module,
        split: Split,
        interrupted: Callable[[], bool] = lambda: False,
        by_sample: bool = False,
    ) -> Evaluation | None:
        """Measure a bare model on a split; it is left in the mode it was in.

        Args:
            model: What is measured.
            split: On what.
            interrupted: Asked before each batch.
            by_sample: Keep what was found of each sample.

        Returns:
            The metrics, the same on every rank; None where some rank was interrupted.
        """
        rank, world = self.ranks.rank, self.ranks.world_size
        was_training, task_was = model.training, self.task.training
        model.eval()
        self.task.eval()
        if world > 1:
            for buffer in model.buffers():  # BatchNorm's, which only rank 0 keeps up to date
                dist.broadcast(buffer, src=0)
        kept: list[tuple[Any, Any]] = []
        found: list[dict[str, Tensor]] | None = [] if by_sample else None
        mine = range(self.shards * rank // world, self.shards * (rank + 1) // world)
        counts = [self._count(model, split, shard, interrupted, kept, found) for shard in mine]
        model.train(was_training)
        self.task.train(task_was)
        together = [torch.stack(tensors) for tensors in zip(*counts, strict=True)]
        stopped, samples, loss_sum, weight_sum, *rest = sum_over_shards(together, world)
        if stopped.item():
            return None
        sums = self.task.sums(self.device)
        for own, summed in zip(sums.tensors(), rest, strict=True):
            own.copy_(summed)
        means = (loss_sum / weight_sum).tolist()
        metrics = dict(zip(("loss", *self.task.terms), means, strict=True)) | sums.figures()
        if not math.isfinite(metrics["loss"]):
            _check_inputs(split, self.ranks, self.settings.batch_size)
        if self.settings.metrics:
            metrics = from_rank_0(metrics | self._named(kept), world)  # what they choose is chosen by every rank
        each = None if found is None else self._together(found)
        if isinstance(sums, ClassificationSums):
            return Evaluation(int(samples), metrics, sums.per_class_accuracy(), sums.confusion(), each)
        return Evaluation(int(samples), metrics, by_sample=each)

    def _count(
        self,
        model: nn.Module,
        split: Split,
        shard: int,
        interrupted: Callable[[], bool],
        kept: list[tuple[Any, Any]],
        found: list[dict[str, Tensor]] | None,
    ) -> list[Tensor]:
        """Whether one shard was interrupted, its samples, the sums of its losses and weights, and those of its metrics.

        Scores and targets are added to `kept`, where metrics by name need them, and what was found of each sample to
        `found`, unless that is None.
        """
        device, in_step = self.device, self.settings.in_step
        sums = self.task.sums(device)
        weight_sum, counted = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        loss_sum = torch.zeros(1 + len(self.task.terms), dtype=torch.float64, device=device)  # the terms' behind it
        stopped = torch.zeros((), device=device)
        batches = in_order(split, shard, self.shards, self.settings.batch_size, device, self.settings.workers)
        for inputs, targets, counts in self._equally_many(batches, split):
            pulse.batches += 1
            asked = interrupted()
            if in_step:
                (votes,) = sum_over_ranks([torch.tensor(float(asked), device=device)], self.ranks.world_size)
                asked = votes.item() > 0
            if asked:
                stopped += 1
                break
            with self.accelerator.autocast():
                (values, weights, terms), scores = self.task.measure(model, inputs, targets)
            if not counts:
                continue
            loss_sum[0] += values.double().sum()
            for i, name in enumerate(self.task.terms, 1):
                loss_sum[i] += terms[name].double().sum()
            weight_sum += len(values) if weights is None else weights.double().sum()
            counted += len(values)
            if scores is not None:
                sums.update(scores, targets)
            if found is not None:
                found.append(
                    {
                        "loss": values.float(),
                        "weight": (torch.ones_like(values) if weights is None else weights).float(),
                    }
                )
                if isinstance(sums, ClassificationSums):
                    found[-1]["correct"] = scores.argmax(1) == targets
            if self.settings.metrics:
                kept.append(tree_map_only(Tensor, Tensor.cpu, (scores, targets)))
        return [stopped, counted, loss_sum, weight_sum, *sums.tensors()]

    def _equally_many(self, batches: Iterator[tuple[Any, Any]], split: Split) -> Iterator[tuple[Any, Any, bool]]:
        """A share's batches, which count, and one that does not where ranks are in step and another has one more."""
        missing = math.ceil(math.ceil(len(split) / self.shards) / self.settings.batch_size)
        for inputs, targets in batches:
            missing -= 1
            yield inputs, targets, True
        for _ in range(missing if self.settings.in_step else 0):
            yield *next(in_order(split, 0, len(split), 1, self.device, 0)), False

    def _together(self, found: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
        """What was found of each sample, in the order of the split, on rank 0; None elsewhere."""
        own = {name: torch.cat([each[name] for each in found]).cpu() for name in (found[0] if found else ())}
        gathered = at_rank_0(own, self.ranks.world_size, self.ranks.rank)
        if gathered is None:
            return None
        parts = [part for part in gathered if part]  # a rank may have had no sample
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _named(self, kept: list[tuple[Any, Any]]) -> dict[str, float]:
        """The metrics that settings name, on rank 0."""
        gathered = at_rank_0(kept, self.ranks.world_size, self.ranks.rank)
        if gathered is None:
            return {}
        outputs = self.task.outputs if isinstance(self.task, Supervised) else None
        metrics = make_metrics(list(self.settings.metrics), outputs)
        for scores, targets in (pair for of_rank in gathered for pair in of_rank):
            pulse.batches += 1
            update_metrics(metrics, outputs, scores, targets)
        return compute_metrics(metrics)


def _check_inputs(split: Split, ranks: Ranks, batch_size: int) -> None:
    """Raise BrokenFile where a sample of this rank's share, and not the model, made a loss infinite."""
    first = len(split) * ranks.rank // ranks.world_size
    for inputs, targets in in_order(split, ranks.rank, ranks.world_size, batch_size, torch.device("cpu"), 0):
        pulse.batches += 1
        if (row := first_infinite(inputs)) is not None:
            raise BrokenFile(f"data: the inputs of sample {first + row} of what is measured hold NaN or infinity")
        first += len(tree_leaves(targets)[0])


def check_metrics(
    task: Task, metrics: Iterable[Any], wanted: Mapping[str, str | None], seen: tuple[Any, Any] | None = None
) -> None:
    """Check, before anything is measured, that an evaluation will have the metrics that settings name.

    Args:
        task: Whose outputs they are of.
        metrics: As the setting names them.
        wanted: Setting to metric, such as `checkpoint.best` to `eval/loss`, or None.
        seen: What a task of a person's own has measured of a few samples, and their targets; None: it was not tried.

    Raises:
        ConfigError: There is no such metric, or the task has nothing for it.
    """
    names = ["loss", *task.terms, *task.sums("cpu").figures()]
    if isinstance(task, Supervised):
        names += make_metrics(list(metrics), task.outputs)
    elif given := list(metrics):
        if type(task).measure is Task.measure or (seen is not None and seen[0] is None):
            raise ConfigError(
                f"metrics: the task {type(task).__name__} has no outputs that metrics could compare with the targets. "
                "Set metrics=[], or return outputs beside the losses from a method `measure` of the task."
            )
        own = make_metrics(given, None)
        if seen is not None:
            try_metrics(own, *seen)
        names += own
    known = [f"eval/{name}" for name in names]
    for setting, metric in wanted.items():
        if metric is not None and metric not in known:
            raise ConfigError(f"{setting}={metric}: the evaluation has no such metric. It has: {', '.join(known)}.")
