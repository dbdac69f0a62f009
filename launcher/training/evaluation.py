"""An evaluation: a model measured on a split, each sample exactly once at any number of ranks."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from launcher.batching.splits import DatasetSplit, TensorSplit, first_infinite
from launcher.batching.stream import in_order
from launcher.core.errors import BrokenFile, ConfigError
from launcher.distributed.process_group import Ranks, at_rank_0, from_rank_0, sum_over_ranks, sum_over_shards
from launcher.distributed.pulse import pulse
from launcher.losses.loss import PerSample
from launcher.metrics.sums import ClassificationSums, compute_metrics, make_metrics, update_metrics
from launcher.training.outputs import Outputs


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        samples: How many were counted, each once.
        figures: Metric name to number: loss, accuracy, macro_f1, top5 or f1; or accuracy, micro_f1, macro_f1 of
            labels; or mae, rmse, r2; or accuracy, perplexity; and what `metrics` names.
        per_class_accuracy: Share of each class that was found; of a classification alone.
        confusion: Rows: the true class, columns: the predicted one; of a classification alone.
    """

    samples: int
    figures: dict[str, float]
    per_class_accuracy: list[float | None] | None = None
    confusion: list[list[int]] | None = None

    def as_dict(self, part: str, class_names: list[str] | None) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "part": part,
            "samples": self.samples,
            "metrics": self.figures,
            "class_names": class_names,
            "per_class_accuracy": self.per_class_accuracy,
            "confusion": self.confusion,
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: PerSample,
    part: TensorSplit | DatasetSplit,
    meaning: Outputs,
    accelerator: Accelerator,
    ranks: Ranks,
    batch_size: int,
    workers: int | str,
    metrics: Iterable[Any] = (),
    shards: int | None = None,
    interrupted: Callable[[], bool] | None = None,
    gathers: bool = False,
) -> Evaluation | None:
    """Measure a model on a part, each sample exactly once at any number of ranks.

    Args:
        model: The bare model; it is left in the mode it was in.
        loss: Per-sample losses.
        part: What to measure on.
        meaning: Of the model's outputs.
        accelerator: For its device and its autocast.
        ranks: Which rank this is.
        batch_size: Most samples at once.
        workers: Processes that load samples which are not in memory.
        metrics: torchmetrics by name; they are computed on rank 0 over all samples in order.
        shards: Pieces that the part is cut into and whose sums are added in order; None: one per rank.
        interrupted: Asked before each batch; True ends the evaluation here.
        gathers: Whether a forward takes all ranks: they then do equally many, and end together.

    Returns:
        The figures, the same on every rank; None where some rank was interrupted.
    """
    device, world = accelerator.device, ranks.world_size
    shards = shards or world
    was_training = model.training
    model.eval()
    if world > 1:
        for buffer in model.buffers():  # BatchNorm's, which only rank 0 keeps up to date
            dist.broadcast(buffer, src=0)
    extra = make_metrics(list(metrics), meaning) if metrics else {}
    kept: list[tuple[Tensor, Tensor]] = []
    of_shard: list[list[Tensor]] = []
    sums = meaning.sums(device)
    for shard in range(shards * ranks.rank // world, shards * (ranks.rank + 1) // world):
        sums = meaning.sums(device)
        loss_sum, weight_sum, counted = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
        stopped = torch.zeros((), device=device)
        batches = in_order(part, shard, shards, batch_size, device, workers)
        for inputs, targets in _equally_many(batches, part, shards, batch_size, device) if gathers else batches:
            pulse.batches += 1
            if interrupted is not None:
                asked = interrupted()
                if gathers:
                    (together,) = sum_over_ranks([torch.tensor(float(asked), device=device)], world)
                    asked = together.item() > 0
                if asked:
                    stopped += 1
                    break
            with accelerator.autocast():
                outputs = model(inputs)
            if not len(targets):  # a placeholder, for the others' sake
                continue
            outputs = outputs.float()
            values, weights = loss(outputs, targets)
            loss_sum += values.double().sum()
            weight_sum += len(targets) if weights is None else weights.double().sum()
            counted += len(targets)
            scores = meaning.scores(outputs)
            sums.update(scores, targets)
            if extra:
                kept.append((scores.cpu(), targets.cpu()))
        of_shard.append([stopped, counted, loss_sum, weight_sum, *sums.tensors()])
    model.train(was_training)
    stacked = [torch.stack(tensors) for tensors in zip(*of_shard, strict=True)]
    stopped, counted, loss_sum, weight_sum, *rest = sum_over_shards(stacked, world)
    if stopped.item():
        return None
    for mine, summed in zip(sums.tensors(), rest, strict=True):
        mine.copy_(summed)
    figures = {"loss": (loss_sum / weight_sum).item()} | sums.figures()
    if not math.isfinite(figures["loss"]):
        _check_inputs(part, ranks, batch_size)
    if extra:
        gathered = at_rank_0(kept, world, ranks.rank)
        if gathered is not None:
            for scores, targets in (pair for of_rank in gathered for pair in of_rank):
                pulse.batches += 1
                update_metrics(extra, meaning, scores, targets)
            figures |= compute_metrics(extra)
        figures = from_rank_0(figures, world)  # what is chosen by them is chosen by every rank
    if isinstance(sums, ClassificationSums):
        return Evaluation(int(counted), figures, sums.per_class_accuracy(), sums.confusion())
    return Evaluation(int(counted), figures)


def _check_inputs(part: TensorSplit | DatasetSplit, ranks: Ranks, batch_size: int) -> None:
    """Look for what made a loss infinite in the samples themselves.

    Raises:
        BrokenFile: One of this rank's share holds NaN or infinity.
    """
    first = len(part) * ranks.rank // ranks.world_size
    for inputs, targets in in_order(part, ranks.rank, ranks.world_size, batch_size, torch.device("cpu"), 0):
        pulse.batches += 1
        if (row := first_infinite(inputs)) is not None:
            raise BrokenFile(f"data: the inputs of sample {first + row} of what is measured hold NaN or infinity")
        first += len(targets)


def _equally_many(
    batches: Iterator[tuple[Any, Any]],
    part: TensorSplit | DatasetSplit,
    shards: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Any, Any]]:
    """A share's batches and, where a larger share has one more, a placeholder without targets."""
    missing = math.ceil(math.ceil(len(part) / shards) / batch_size)
    for batch in batches:
        missing -= 1
        yield batch
    for _ in range(missing):
        inputs, targets = next(in_order(part, 0, len(part), 1, device, 0))
        yield inputs, targets[:0]


def check_figures(meaning: Outputs, metrics: Iterable[Any], wanted: Mapping[str, str | None]) -> None:
    """Check, before anything is measured, that an evaluation will have the figures that settings name.

    Args:
        meaning: Of the model's outputs, which decides what there is.
        metrics: torchmetrics by name.
        wanted: Setting to figure, such as `checkpoint.best` to `eval/loss`; None names none.

    Raises:
        ConfigError: There will be no such figure, or no such metric.
    """
    names = ["loss", *meaning.sums("cpu").figures(), *make_metrics(list(metrics), meaning)]
    known = [f"eval/{name}" for name in names]
    for setting, figure in wanted.items():
        if figure is not None and figure not in known:
            raise ConfigError(f"{setting}={figure}: the evaluation has no such figure. It has: {', '.join(known)}.")
