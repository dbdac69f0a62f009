"""Metrics of torchmetrics by name."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launcher.config.components import locate
from launcher.core.errors import ConfigError
from launcher.core.extras import import_extra
from launcher.distributed.numerics import in_any_order

if TYPE_CHECKING:
    from launcher.tasks.outputs import Outputs


def make_metrics(names: Sequence[str | Mapping[str, Any]], outputs: "Outputs | None") -> dict[str, Any]:
    """Build torchmetrics metrics by name.

    Args:
        names: Class names such as "AUROC", or with arguments {"name": "FBetaScore", "beta": 0.5}; a torchmetrics.Metric
            of a person's own is {"_target_": "my_metrics.Kappa", ...}. `task`, `num_classes` and `num_labels` are
            filled in where a metric takes them.
        outputs: What the model gives; None for a task of a person's own, of which nothing is filled in or tried.

    Returns:
        Name to metric. A name that comes again takes its arguments along: "FBetaScore_beta2".

    Raises:
        ConfigError: No torchmetrics or metric of the name, one of another task or of no single number, a wrong
            argument.
    """
    if not names:
        return {}
    # 2 s: only when a metric is named
    import_extra("torchmetrics", "metrics: a name is one of the package torchmetrics", "metrics")
    metrics: dict[str, Any] = {}
    known = {} if outputs is None else _known(outputs)
    for entry in names:
        arguments = {"name": entry} if isinstance(entry, str) else {str(k): v for k, v in entry.items()}
        if "_target_" in arguments:
            name = str(arguments.pop("_target_"))
            found = _own(name)
        else:
            name = str(arguments.pop("name", None))
            found = _find(name)
            if outputs is not None:
                _check_family(name, found, outputs.task)
        takes = {**inspect.signature(found.__init__).parameters, **inspect.signature(found.__new__).parameters}
        filled = {k: v for k, v in known.items() if k in takes}
        key = name.rpartition(".")[2]
        if key in metrics:
            key += "".join(f"_{k}{v}" for k, v in arguments.items())
        if key in metrics:
            raise ConfigError(f"metrics: {key} is named twice.")
        try:
            # Rank 0 has every sample and computes alone: torchmetrics would wait for the other ranks to do so too.
            metrics[key] = found(**filled | {"sync_on_compute": False} | arguments)
            if outputs is not None:
                _probe(metrics[key], outputs)
        except Exception as error:  # torchmetrics raises whatever its parts do
            of_own = "" if outputs is not None else f" A task of your own has it told: [{{name: {name}, task: ...}}]."
            raise ConfigError(f"metrics: {name} refuses {arguments or 'this data'}: {error}{of_own}") from error
    return metrics


def _known(outputs: "Outputs") -> dict[str, Any]:
    """Arguments that are filled in where a metric names them."""
    alone = outputs.one_logit or (outputs.task == "multilabel" and outputs.count == 1)
    kind = "binary" if alone else "multilabel" if outputs.task == "multilabel" else "multiclass"
    return {"task": kind, "num_classes": outputs.count, "num_labels": outputs.count}


def _own(target: str) -> Any:
    """A person's own class, else a ConfigError."""
    from torchmetrics import Metric

    found = locate(target, "metrics")
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise ConfigError(f"metrics: {target} is no subclass of torchmetrics.Metric.")
    return found


def _find(name: str) -> Any:
    """The class of torchmetrics that has a name, else a ConfigError."""
    import torchmetrics
    from torchmetrics import segmentation

    found = getattr(torchmetrics, name, None) or getattr(torchmetrics.classification, name, None)  # as BinaryAUROC
    found = found or getattr(segmentation, name, None)  # as MeanIoU
    if not (isinstance(found, type) and issubclass(found, torchmetrics.Metric)):
        if "." in name:
            raise ConfigError(
                f"metrics: {name} is no name of torchmetrics; a class of your own is {{_target_: {name}}}."
            )
        near = [one for one in torchmetrics.__all__ if one.lower() == name.lower().replace("_", "")]
        near = near or get_close_matches(name, torchmetrics.__all__, n=3, cutoff=0.4)
        raise ConfigError(
            f"metrics: torchmetrics has no metric {name!r}."
            + (f" Did you mean {' or '.join(near)}?" if near else " See https://lightning.ai/docs/torchmetrics")
        )
    return found


def _check_family(name: str, found: Any, task: str) -> None:
    """Refuse a metric that is for another task, else a ConfigError."""
    family = found.__module__.split(".")[1]
    if family == task == "segmentation":
        raise ConfigError(
            f"metrics: {name} counts the pixels that are of no class too. Use one for classification, of the pixels "
            "that count, such as JaccardIndex (IoU) or F1Score (Dice)."
        )
    if family != ("classification" if task in ("multilabel", "segmentation") else task):
        raise ConfigError(f"metrics: {name} is a metric for {family}, the data's task is {task}.")


def update_metrics(metrics: Mapping[str, Any], outputs: "Outputs | None", scores: Any, targets: Any) -> None:
    """Give a batch to metrics from `make_metrics`, on their device.

    Args:
        metrics: Name to metric.
        outputs: What the scores mean; None: metrics get scores and targets as they are.
        scores: From `Outputs.scores`, or what a task of a person's own measures.
        targets: Classes [n], labels [n, k], values [n, d], or classes of pixels [n, h, w].
    """
    if outputs is None:
        for metric in metrics.values():
            with in_any_order():
                metric.update(scores, targets)
        return
    if outputs.task == "segmentation" and scores.dim() == 4:
        counts = (targets >= 0) & (targets < outputs.count)
        scores, targets = scores.movedim(1, -1)[counts], targets[counts]  # of each pixel, [p, k] and [p]
        if not len(targets):
            return
    if outputs.task == "regression":  # of relative errors and logarithms only those in the target's own unit tell
        scores, targets = outputs.in_own_units(scores), outputs.in_own_units(targets)
        if outputs.count == 1:  # some insist on [n]
            scores, targets = scores.reshape(-1), targets.reshape(-1)
    else:
        targets = targets.long()
    for metric in metrics.values():
        given, true = scores, targets
        if type(metric).__name__.startswith(("Binary", "Multilabel")):
            # Else torchmetrics takes a batch whose logits all happen to lie between 0 and 1 for probabilities.
            given = outputs.probabilities(scores.double())
            if type(metric).__name__.startswith("Binary"):
                given, true = given[:, -1], true.reshape(-1)
        elif outputs.task in ("classification", "segmentation"):
            given = scores.log_softmax(1)  # for the same reason
        with in_any_order():
            metric.update(given, true)


def compute_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of metrics from `make_metrics`, which `update_metrics` has given samples, by name."""
    with in_any_order():
        return {name: float(metric.compute()) for name, metric in metrics.items()}


def _probe(metric: Any, outputs: "Outputs") -> None:
    """Let the metric see a few samples, so that one that gives no single number fails before training."""
    if outputs.task in ("classification", "segmentation"):
        scores, targets = torch.eye(outputs.count).repeat(2, 1), torch.arange(outputs.count).repeat(2)
    else:
        targets = torch.arange(1.0, 1 + 10 * outputs.count).view(10, outputs.count)
        scores = targets + 0.5
    if outputs.task == "multilabel":
        targets = (targets + torch.arange(10)[:, None]) % 2
        scores = targets - 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update_metrics({"": metric}, outputs, scores, targets)
        with in_any_order():
            result = metric.compute()
    metric.reset()
    _check_one_number(result)


def try_metrics(metrics: Mapping[str, Any], scores: Any, targets: Any) -> None:
    """Let metrics see what a task of a person's own measures of a few samples.

    Raises:
        ConfigError: One does not take it, or gives no single number.
    """
    for name, metric in metrics.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                update_metrics({name: metric}, None, scores, targets)
            except Exception as error:  # torchmetrics raises whatever its parts do
                raise ConfigError(f"metrics: {name} does not take what the task measures: {error}") from error
            with in_any_order():
                try:
                    result = metric.compute()
                except Exception:  # it may need more than a few samples
                    continue
        metric.reset()
        try:
            _check_one_number(result)
        except ValueError as error:
            raise ConfigError(f"metrics: {name}: {error}.") from error


def _check_one_number(result: Any) -> None:
    """Raise a ValueError where a metric has given something else."""
    if not isinstance(result, Tensor) or result.numel() != 1:
        shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"its result is {shape}, not one number (an average over classes or outputs may help)")
