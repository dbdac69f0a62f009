"""Metrics: sums kept on the device, added up over ranks, from which the figures follow exactly."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from launcher.core.errors import BrokenFile, ConfigError
from launcher.core.kernels import in_any_order

if TYPE_CHECKING:
    from launcher.training.outputs import Outputs

MATRIX = 1000  # classes up to which confusions are counted


class ClassificationSums:
    """Counts of each class, the confusion matrix, and top-5 hits, updated without waiting for the device.

    Args:
        num_classes: k. Above MATRIX there is no confusion matrix: that of 10,000 classes would take 0.8 GB.
        device: Where outputs and targets will be.
        positive: Whether the second of two classes is what is looked for, and F1 is of that one too.
    """

    def __init__(self, num_classes: int, device: torch.device | str, positive: bool = False):
        self.num_classes, self.positive = num_classes, positive
        self._whole = num_classes <= MATRIX
        # The matrix, row by row; or how often each class was right, was true, was predicted.
        cells = num_classes * (num_classes if self._whole else 3)
        self._cells = torch.zeros(cells, dtype=torch.int64, device=device)
        # Hits among five, and targets that are no class: looked at when the figures are read, not in each batch.
        self._top5, self._strange = torch.zeros(2, 1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count samples.

        Args:
            outputs: Scores, [n, k].
            targets: Classes, [n] int64 in 0..k-1.
        """
        predicted, given = outputs.argmax(1), targets.long()
        targets = given.clamp(0, self.num_classes - 1)
        self._strange += (targets != given).sum()
        # Not bincount: on CUDA it asks the device for the largest value, and waits.
        if self._whole:
            cells = targets * self.num_classes + predicted
            self._cells.scatter_add_(0, cells, torch.ones_like(cells))
        else:
            cells = torch.cat([targets, targets + self.num_classes, predicted + 2 * self.num_classes])
            counts = torch.ones_like(cells)
            counts[: len(targets)] = predicted == targets
            self._cells.scatter_add_(0, cells, counts)
        if self.num_classes > 5:
            self._top5 += (outputs.topk(5, dim=1).indices == targets.unsqueeze(1)).sum()

    def tensors(self) -> list[Tensor]:
        """Tensors whose sum over ranks, in place, makes the figures those of all samples."""
        return [self._cells, self._top5, self._strange]

    def confusion(self) -> list[list[int]] | None:
        """Counts, [k, k]: rows are the true classes, columns the predicted ones; None for k > MATRIX."""
        return self._cells.view(-1, self.num_classes).tolist() if self._whole else None

    def figures(self) -> dict[str, float]:
        """Metrics in 0..1, nan where no sample was counted.

        Returns:
            accuracy; macro_f1, the mean F1 of the classes that occur as target or prediction, as
            scikit-learn's f1_score(average="macro", zero_division=0); for k > 5, top5; and where one is positive, f1.

        Raises:
            BrokenFile: A target was none of the classes.
        """
        if self._strange:
            raise BrokenFile(
                f"data: {int(self._strange)} targets of what was measured are none of the {self.num_classes} classes, "
                f"0..{self.num_classes - 1}"
            )
        right, true, predicted = self._counts()
        samples = true.sum()
        occurs = (true + predicted) > 0
        figures = {
            "accuracy": float(right.sum() / samples),
            "macro_f1": float((2 * right[occurs] / (true + predicted)[occurs]).mean()),
        }
        if self.num_classes > 5:
            figures["top5"] = float(self._top5.cpu() / samples)
        if self.positive:
            figures["f1"] = _f1(right[1], true[1] - right[1] + predicted[1] - right[1])
        return figures

    def per_class_accuracy(self) -> list[float | None]:
        """Share of each class's samples that are right, [k]; None for a class without samples."""
        right, true, _ = self._counts()
        return [None if share != share else share for share in (right / true).tolist()]

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """How often each class was right, true and predicted, [k] float64 each."""
        rows = self._cells.cpu().view(-1, self.num_classes).double()
        if self._whole:
            return rows.diagonal(), rows.sum(1), rows.sum(0)
        return rows[0], rows[1], rows[2]


class LabelSums:
    """Counts for labels of which a sample has any number: right, missed and invented ones of each, and samples.

    Args:
        num_labels: k.
        device: Where outputs and targets will be.
    """

    def __init__(self, num_labels: int, device: torch.device | str):
        # Rows: found, found or there but not both, samples with every label right, samples.
        self._sums = torch.zeros(4, num_labels, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count samples.

        Args:
            outputs: Logits, [n, k]: a label is predicted above 0, which is a probability of one half.
            targets: Whether each label is there, [n, k].
        """
        predicted, true = outputs > 0, targets > 0.5
        wrong = predicted != true
        right = (~wrong).all(1, keepdim=True).expand_as(wrong)
        self._sums += torch.stack([predicted & true, wrong, right, torch.ones_like(wrong)]).sum(1)

    def tensors(self) -> list[Tensor]:
        """Tensors whose sum over ranks, in place, makes the figures those of all samples."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Metrics in 0..1, nan where no sample was counted.

        Returns:
            accuracy, the share of samples with every label right, as scikit-learn's accuracy_score; micro_f1, of all
            labels together, and macro_f1, the mean over the labels, as its f1_score(zero_division=0).
        """
        found, wrong, right, samples = self._sums.cpu().double()
        return {
            "accuracy": float(right[0] / samples[0]),
            "micro_f1": _f1(found.sum(), wrong.sum()),
            "macro_f1": sum(_f1(*of_label) for of_label in zip(found, wrong, strict=True)) / len(found),
        }


def _f1(right: Tensor, wrong: Tensor) -> float:
    """2 right / (2 right + missed + invented); 0 where nothing was there and nothing predicted."""
    return float(2 * right / (2 * right + wrong).clamp_min(1))


class RegressionSums:
    """Sums of errors and targets for each output, in float64.

    Args:
        num_outputs: d.
        device: Where outputs and targets will be.
        near: [d] numbers near the targets, the same on all ranks, or None for 0: the variance of targets far from 0
            would be lost in their squares.
    """

    def __init__(self, num_outputs: int, device: torch.device | str, near: Tensor | None = None):
        # Rows: samples, |error|, error^2, target, target^2.
        self._sums = torch.zeros(5, num_outputs, dtype=torch.float64, device=device)
        self._near = None if near is None else near.to(device)

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count samples.

        Args:
            outputs: [n, d] (or [n] for d = 1).
            targets: As outputs.
        """
        wanted = targets.double().reshape(len(targets), -1)
        error = outputs.double().reshape(len(outputs), -1) - wanted
        if self._near is not None:
            wanted = wanted - self._near
        rows = (torch.ones_like(error), error.abs(), error.square(), wanted, wanted.square())
        self._sums += torch.stack(rows).sum(1)

    def tensors(self) -> list[Tensor]:
        """Tensors whose sum over ranks, in place, makes the figures those of all samples."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Metrics, each the plain mean over outputs, as scikit-learn's; nan where no sample was counted.

        Returns:
            mae, rmse (of each output its own root) and r2 (of a constant target: 1 if met exactly, else 0;
            nan below two samples).
        """
        samples, absolute, squared, total, total_squared = self._sums.cpu()
        spread = (total_squared - total.square() / samples).clamp_min(0.0)
        # What is left of a constant target is rounding; float32 targets that vary lie far above it.
        constant = spread <= 1e-12 * total_squared
        r2 = torch.where(constant, (squared == 0).double(), 1 - squared / spread)
        return {
            "mae": float((absolute / samples).mean()),
            "rmse": float((squared / samples).sqrt().mean()),
            "r2": float(r2.mean()) if samples[0] > 1 else float("nan"),
        }


class LanguageSums:
    """Tokens, how many of them were the likeliest, and the sum of -log p, in float64.

    Args:
        device: Where outputs and targets will be.
    """

    def __init__(self, device: torch.device | str):
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count the tokens of some sequences.

        Args:
            outputs: Scores of the next token, [n, t, v].
            targets: The next tokens, [n, t] of any integer type.
        """
        outputs, targets = outputs.flatten(0, 1), targets.flatten().long()
        self._sums[0] += len(targets)
        self._sums[1] += (outputs.argmax(1) == targets).sum()
        self._sums[2] += F.cross_entropy(outputs, targets, reduction="none").double().sum()

    def tensors(self) -> list[Tensor]:
        """Tensors whose sum over ranks, in place, makes the figures those of all samples."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Metrics over all tokens, nan where no token was counted.

        Returns:
            accuracy, in 0..1; perplexity, exp of the mean of -log p, whatever the loss: 1 for a model that knows each
            token, v for one that guesses.
        """
        tokens, right, nats = self._sums.cpu()
        return {"accuracy": float(right / tokens), "perplexity": float((nats / tokens).exp())}


Sums = ClassificationSums | LabelSums | RegressionSums | LanguageSums


def make_metrics(names: Sequence[str | Mapping[str, Any]], outputs: "Outputs") -> dict[str, Any]:
    """Build torchmetrics metrics by name.

    Args:
        names: Class names such as "AUROC", or with arguments {"name": "FBetaScore", "beta": 0.5}. `task`,
            `num_classes` and `num_labels` are filled in.
        outputs: What the model gives.

    Returns:
        Name to metric. A name that comes again takes its arguments along: "FBetaScore_beta2".

    Raises:
        ConfigError: No such metric, one of another task or without a single number as its result, a wrong
            argument, or torchmetrics is not installed.
    """
    if not names:
        return {}
    try:
        import torchmetrics  # 2 s: only when a metric is named
    except ImportError as error:
        raise ConfigError("metrics: torchmetrics is not installed: pip install torchmetrics") from error
    metrics: dict[str, Any] = {}
    classifying = outputs.task in ("classification", "multilabel")
    alone = outputs.one_logit or (outputs.task == "multilabel" and outputs.count == 1)
    kind = "binary" if alone else "multilabel" if outputs.task == "multilabel" else "multiclass"
    known = {"task": kind, "num_classes": outputs.count, "num_labels": outputs.count}
    for entry in names:
        arguments = {"name": entry} if isinstance(entry, str) else {str(k): v for k, v in entry.items()}
        name = arguments.pop("name", None)
        found = getattr(torchmetrics, str(name), None)
        if found is None:  # BinaryAUROC and the like
            found = getattr(torchmetrics.classification, str(name), None)
        if not (isinstance(found, type) and issubclass(found, torchmetrics.Metric)):
            near = get_close_matches(str(name), torchmetrics.__all__, n=3, cutoff=0.4)
            raise ConfigError(
                f"metrics: torchmetrics has no metric {name!r}."
                + (f" Did you mean {' or '.join(near)}?" if near else " See https://lightning.ai/docs/torchmetrics")
            )
        family = found.__module__.split(".")[1]
        if family != ("classification" if classifying else outputs.task):
            raise ConfigError(f"metrics: {name} is a metric for {family}, the data's task is {outputs.task}.")
        takes = {**inspect.signature(found.__init__).parameters, **inspect.signature(found.__new__).parameters}
        filled = {k: v for k, v in known.items() if k in takes}
        key = str(name)
        if key in metrics:
            key += "".join(f"_{k}{v}" for k, v in arguments.items())
        if key in metrics:
            raise ConfigError(f"metrics: {key} is named twice.")
        try:
            # Rank 0 has every sample and computes alone: torchmetrics would wait for the other ranks to do so too.
            metrics[key] = found(**filled | {"sync_on_compute": False} | arguments)
            _probe(metrics[key], outputs)
        except Exception as error:  # torchmetrics raises whatever its parts do
            raise ConfigError(f"metrics: {name} refuses {arguments or 'this data'}: {error}") from error
    return metrics


def update_metrics(metrics: Mapping[str, Any], outputs: "Outputs", scores: Tensor, targets: Tensor) -> None:
    """Give a batch to metrics from `make_metrics`, on their device.

    Args:
        metrics: Name to metric.
        outputs: What the scores mean.
        scores: From `Outputs.scores`.
        targets: Classes [n], labels [n, k], or values [n, d]; [n, 1] values are given as [n], which some insist on.
    """
    if outputs.task == "regression" and scores.shape[1] == 1:
        scores, targets = scores.reshape(-1), targets.reshape(-1)
    elif outputs.task != "regression":
        targets = targets.long()
    for metric in metrics.values():
        given, true = scores, targets
        if type(metric).__name__.startswith(("Binary", "Multilabel")):
            # Else torchmetrics takes a batch whose logits all happen to lie between 0 and 1 for probabilities.
            given = outputs.probabilities(scores.double())
            if type(metric).__name__.startswith("Binary"):
                given, true = given[:, -1], true.reshape(-1)
        elif outputs.task == "classification":
            given = scores.log_softmax(1)  # for the same reason
        with in_any_order():
            metric.update(given, true)


def compute_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of metrics from `make_metrics`, which `update_metrics` has given samples, by name."""
    with in_any_order():
        return {name: float(metric.compute()) for name, metric in metrics.items()}


def _probe(metric: Any, outputs: "Outputs") -> None:
    """Let the metric see a few samples, so that one that gives no single number fails before training."""
    if outputs.task == "classification":
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
    if not isinstance(result, Tensor) or result.numel() != 1:
        shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"its result is {shape}, not one number (an average over classes or outputs may help)")
