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
from launcher.core.errors import BrokenFile, ConfigError
from launcher.distributed.collectives import at_rank_0, from_rank_0, sum_over_ranks, sum_over_shards
from launcher.distributed.pulse import pulse
from launcher.distributed.ranks import Ranks
from launcher.losses.per_sample import PerSample
from launcher.metrics.classification import ClassificationSums
from launcher.metrics.named import compute_metrics, make_metrics, update_metrics
from launcher.training.outputs import Outputs


@dataclass
class Evaluation:
    """What an evaluation found; the last two of a classification alone."""

    samples: int  # each counted once
    metrics: dict[str, float]  # loss, those of the task, and what the setting `metrics` names
    per_class_accuracy: list[float | None] | None = None  # share of each class that was found
    confusion: list[list[int]] | None = None  # rows: the true class, columns: the predicted one

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

    def __init__(
        self, loss: PerSample, outputs: Outputs, accelerator: Accelerator, ranks: Ranks, settings: EvaluationSettings
    ) -> None:
        self.loss, self.outputs, self.accelerator, self.ranks = loss, outputs, accelerator, ranks
        self.settings, self.device = settings, accelerator.device
        self.shards = settings.shards or ranks.world_size

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: Split, interrupted: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """Measure a bare model on a split; it is left in the mode it was in.

        `interrupted` is asked before each batch.

        Returns:
            The metrics, the same on every rank; None where some rank was interrupted.
        """
        rank, world = self.ranks.rank, self.ranks.world_size
        was_training = model.training
        model.eval()
        if world > 1:
            for buffer in model.buffers():  # BatchNorm's, which only rank 0 keeps up to date
                dist.broadcast(buffer, src=0)
        kept: list[tuple[Tensor, Tensor]] = []
        mine = range(self.shards * rank // world, self.shards * (rank + 1) // world)
        counts = [self._count(model, split, shard, interrupted, kept) for shard in mine]
        model.train(was_training)
        together = [torch.stack(tensors) for tensors in zip(*counts, strict=True)]
        stopped, samples, loss_sum, weight_sum, *rest = sum_over_shards(together, world)
        if stopped.item():
            return None
        sums = self.outputs.sums(self.device)
        for own, summed in zip(sums.tensors(), rest, strict=True):
            own.copy_(summed)
        metrics = {"loss": (loss_sum / weight_sum).item()} | sums.figures()
        if not math.isfinite(metrics["loss"]):
            _check_inputs(split, self.ranks, self.settings.batch_size)
        if self.settings.metrics:
            metrics = from_rank_0(metrics | self._named(kept), world)  # what they choose is chosen by every rank
        if isinstance(sums, ClassificationSums):
            return Evaluation(int(samples), metrics, sums.per_class_accuracy(), sums.confusion())
        return Evaluation(int(samples), metrics)

    def _count(
        self,
        model: nn.Module,
        split: Split,
        shard: int,
        interrupted: Callable[[], bool],
        kept: list[tuple[Tensor, Tensor]],
    ) -> list[Tensor]:
        """Whether one shard was interrupted, its samples, the sums of its losses and weights, and those of its metrics.

        Scores and targets are added to `kept`, where metrics by name need them.
        """
        device, in_step = self.device, self.settings.in_step
        sums = self.outputs.sums(device)
        loss_sum, weight_sum, counted = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
        stopped = torch.zeros((), device=device)
        batches = in_order(split, shard, self.shards, self.settings.batch_size, device, self.settings.workers)
        for inputs, targets in self._equally_many(batches, split) if in_step else batches:
            pulse.batches += 1
            asked = interrupted()
            if in_step:
                (votes,) = sum_over_ranks([torch.tensor(float(asked), device=device)], self.ranks.world_size)
                asked = votes.item() > 0
            if asked:
                stopped += 1
                break
            with self.accelerator.autocast():
                outputs = model(inputs)
            if not len(targets):  # a placeholder, for the others' sake
                continue
            outputs = outputs.float()
            values, weights = self.loss(outputs, targets)
            loss_sum += values.double().sum()
            weight_sum += len(targets) if weights is None else weights.double().sum()
            counted += len(targets)
            scores = self.outputs.scores(outputs)
            sums.update(scores, targets)
            if self.settings.metrics:
                kept.append((scores.cpu(), targets.cpu()))
        return [stopped, counted, loss_sum, weight_sum, *sums.tensors()]

    def _equally_many(self, batches: Iterator[tuple[Any, Any]], split: Split) -> Iterator[tuple[Any, Any]]:
        """A share's batches and, where a larger share has one more, a placeholder without targets."""
        missing = math.ceil(math.ceil(len(split) / self.shards) / self.settings.batch_size)
        for batch in batches:
            missing -= 1
            yield batch
        for _ in range(missing):
            inputs, targets = next(in_order(split, 0, len(split), 1, self.device, 0))
            yield inputs, targets[:0]

    def _named(self, kept: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The metrics that settings name, on rank 0."""
        gathered = at_rank_0(kept, self.ranks.world_size, self.ranks.rank)
        if gathered is None:
            return {}
        metrics = make_metrics(list(self.settings.metrics), self.outputs)
        for scores, targets in (pair for of_rank in gathered for pair in of_rank):
            pulse.batches += 1
            update_metrics(metrics, self.outputs, scores, targets)
        return compute_metrics(metrics)


def _check_inputs(split: Split, ranks: Ranks, batch_size: int) -> None:
    """Raise BrokenFile where a sample of this rank's share, and not the model, made a loss infinite."""
    first = len(split) * ranks.rank // ranks.world_size
    for inputs, targets in in_order(split, ranks.rank, ranks.world_size, batch_size, torch.device("cpu"), 0):
        pulse.batches += 1
        if (row := first_infinite(inputs)) is not None:
            raise BrokenFile(f"data: the inputs of sample {first + row} of what is measured hold NaN or infinity")
        first += len(targets)


def check_metrics(meaning: Outputs, metrics: Iterable[Any], wanted: Mapping[str, str | None]) -> None:
    """Check, before anything is measured, that an evaluation will have the metrics that settings name.

    `wanted` is setting to metric, such as `checkpoint.best` to `eval/loss`, or None.

    Raises:
        ConfigError: There is no such metric.
    """
    names = ["loss", *meaning.sums("cpu").figures(), *make_metrics(list(metrics), meaning)]
    known = [f"eval/{name}" for name in names]
    for setting, metric in wanted.items():
        if metric is not None and metric not in known:
            raise ConfigError(f"{setting}={metric}: the evaluation has no such metric. It has: {', '.join(known)}.")
