"""Losses: what torch lacks, and one form for all: values and weights per sample, so that means are exact."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.config.components import build, locate
from launcher.core.errors import BrokenFile, ConfigError
from launcher.losses.binary_cross_entropy import BinaryCrossEntropy, as_shares
from launcher.losses.focal import FocalLoss

if TYPE_CHECKING:
    from launcher.data.source import Data

HALF = (torch.float16, torch.bfloat16)
FITTING = {
    "classification": "cross_entropy, multi_margin, focal, binary_cross_entropy",
    "multilabel": "binary_cross_entropy (mse, l1 and huber with data.task=regression)",
    "regression": "mse, l1, huber (binary_cross_entropy for targets between 0 and 1)",
    "language": "cross_entropy, focal, multi_margin",
}


def _explained(error: Exception, outputs: Any, targets: Tensor) -> Exception:
    """What torch says of a class that there is not, in words; any other error as it is."""
    if targets.device.type == "cpu" and not targets.is_floating_point() and getattr(outputs, "ndim", 0) > 1:
        strange = targets[(targets < 0) | (targets >= outputs.shape[1])]
        if len(strange):
            count = outputs.shape[1]
            return BrokenFile(f"data: a target is {strange[0]}, which is none of the {count} classes, 0..{count - 1}")
    return error


# Classification losses take `weight` or `alpha` per class; regression losses compare element by element.
CLASSIFYING = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, FocalLoss)
REGRESSING = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
MARGINS = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss)
LOGISTIC = (BinaryCrossEntropy, nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss)  # a sigmoid per output


class PerSample(nn.Module):
    """Any loss as values and weights per sample: sums over micro-batches and ranks then give the exact mean.

    The mean over any set of samples is sum(values) / sum(weights), which is what the loss's own
    reduction="mean" gives on all of them at once. A module that returns a scalar (a user's own mean) counts
    by samples.

    Args:
        loss: A torch loss (its `reduction` becomes "none"), or any module (outputs, targets) -> [n], [n, ...]
            or a scalar; it may have a method `weights(targets) -> [n] | None`.
        task: Of the data, which says what its targets are; None leaves them as they are.
            Of a language samples are sequences: the loss is given their tokens, [b * t, v] and [b * t], as so many
            samples of a classification; the value of a sequence is the mean over its tokens.
    """

    def __init__(self, loss: nn.Module, task: str | None = None):
        super().__init__()
        self.loss, self.task = loss, task
        self.language = task == "language"
        self.logistic, self.margins = isinstance(loss, LOGISTIC), isinstance(loss, MARGINS)
        if hasattr(loss, "reduction"):
            loss.reduction = "none"  # type: ignore[assignment]
        self.elementwise = isinstance(loss, REGRESSING)
        self.weigh: Callable[[Tensor], Tensor | None] | None = getattr(loss, "weights", None)
        if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
            self.weigh = self._torch_weights

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss and weight of each sample.

        Args:
            outputs: What the model gives, samples first. Half precision is computed in float32.
            targets: What it should give, samples first.

        Returns:
            Values [n], already weighted, and weights [n] (None: each sample weighs 1), float32.

        Raises:
            ConfigError: Outputs and targets of an elementwise loss differ in shape (they would broadcast).
        """
        if isinstance(outputs, Tensor) and outputs.dtype in HALF:
            outputs = outputs.float()
        if self.elementwise and outputs.shape != targets.shape:
            raise ConfigError(
                f"loss: {type(self.loss).__name__} compares outputs {list(outputs.shape)} with targets "
                f"{list(targets.shape)}: the model must give one number for each target."
            )
        if self.logistic:
            targets = as_shares(outputs, targets)
        elif self.task in ("regression", "multilabel"):
            targets = targets.to(outputs.dtype)
        elif self.task is not None and not targets.is_floating_point():
            targets = targets.long()
        samples = len(targets)
        if self.language:
            outputs, targets = outputs.flatten(0, 1), targets.flatten().long()
        try:
            values = self.loss(outputs, targets)
        except (IndexError, RuntimeError) as error:
            raise _explained(error, outputs, targets) from error
        if self.margins:  # for which an output that is NaN lies beyond every margin: a loss of 0
            values = values.masked_fill(outputs.isnan().any(-1), torch.nan)
        weights = None if self.weigh is None else self.weigh(targets)
        if values.dtype in HALF:
            values = values.float()
        if values.dim() == 0:
            values = values.expand(len(targets))
        if self.language:
            values = values.unflatten(0, (samples, -1))
            weights = None if weights is None else weights.unflatten(0, (samples, -1))
        if values.dim() > 1:
            if weights is not None and weights.dim() > 1:  # tokens or pixels, each with its own weight
                values, weights = values.flatten(1).sum(1), weights.flatten(1).sum(1)
            else:
                values = values.flatten(1).mean(1)
        return values, weights

    def _torch_weights(self, targets: Tensor) -> Tensor | None:
        """What torch's own mean divides by: the weight of each target's class, 0 for an ignored one."""
        loss: Any = self.loss
        weight, ignored = loss.weight, loss.ignore_index
        if targets.is_floating_point():  # class probabilities: torch divides by n
            return None
        # Plain labels, one for each sample, are all valid: the default ignore_index (-100) costs nothing.
        if ignored < 0 and targets.dim() == 1:
            return None if weight is None else weight[targets]
        valid = targets != ignored
        return valid.float() if weight is None else weight[targets.where(valid, 0)] * valid


def kind_of(settings: Mapping[str, Any]) -> type:
    """The class of the loss that settings name; `object` where it is no class.

    Raises:
        ConfigError: It does not import.
    """
    found = locate(str(settings["_target_"]), "loss") if settings.get("_target_") else None
    return found if isinstance(found, type) else object


def gives(settings: Mapping[str, Any]) -> str:
    """What a loss takes from a model: see `Outputs.given`."""
    kind = kind_of(settings)
    return "probabilities" if issubclass(kind, nn.BCELoss) else "logits" if issubclass(kind, LOGISTIC) else "scores"


def fit_task(data: "Data", settings: Mapping[str, Any]) -> "Data":
    """The data as their loss understands them: numbers of nothing but 0 and 1, with a sigmoid for each, are labels.

    Args:
        data: Of the run.
        settings: Of the loss.
    """
    targets = [part.targets for part in data.splits().values()]
    if data.task != "regression" or gives(settings) == "scores":
        return data
    if not all(one is not None and bool(torch.isin(one, torch.tensor([0, 1])).all()) for one in targets):
        return data
    return replace(data, task="multilabel", notes=[*data.notes, "targets of 0 and 1: a multilabel task"])


def build_loss(settings: Mapping[str, Any], data: "Data") -> PerSample:
    """Build the loss that conf/loss describes.

    Args:
        settings: `_target_` and the constructor's arguments. `weight` (of the losses for classes) and `alpha`
            (of FocalLoss) may be null, a list of k numbers, or "balanced": n / (k * count of the class).
        data: Its task, number of outputs and class counts.

    Raises:
        ConfigError: The loss does not fit the task, or a weight, count or argument is wrong.
    """
    kind = kind_of(settings)
    unfit = {
        "classification": REGRESSING,
        "multilabel": (*CLASSIFYING, *REGRESSING),
        "regression": CLASSIFYING,
        "language": (*REGRESSING, BinaryCrossEntropy),
    }
    if issubclass(kind, unfit.get(data.task, ())):
        other = {"classification": "regression", "regression": "classification"}.get(data.task)
        hint = (
            f" Or set data.task={other}, where that is meant." if other and data.name in ("csv", "huggingface") else ""
        )
        words = f"does not fit data of the task {data.task}. Losses that do: {FITTING[data.task]}.{hint}"
        raise ConfigError(f"loss: {kind.__name__} {words}")
    if settings.get("reduction") not in (None, "mean", "none"):
        raise ConfigError(
            f"loss.reduction is {settings['reduction']!r}: leave it out; the mean is over the global batch."
        )
    if issubclass(kind, LOGISTIC) and data.task == "regression":
        _check_probabilities(data, kind.__name__)
    fixed, facts = dict(settings), data.facts()
    for key in ("weight", "alpha", "pos_weight"):
        given = fixed.get(key)
        if given is not None and data.task == "language":
            raise ConfigError(f"loss.{key} is {given!r}: the tokens of a language all weigh the same; leave it null.")
        if given == "balanced" and key != "pos_weight":
            facts[key] = balanced_weights(key, data)
        elif given is not None and issubclass(kind, (*CLASSIFYING, BinaryCrossEntropy)):
            # A single logit for two classes has a single weight.
            alone = key == "pos_weight" and data.num_outputs == 2 and hasattr(given, "__len__") and len(given) == 1
            facts[key] = _listed_weights(key, given, 1 if alone else data.num_outputs)
        if key in facts:
            fixed.pop(key)
    loss = build("loss", fixed, **facts)
    if not isinstance(loss, nn.Module):
        target = settings["_target_"]
        raise ConfigError(f"loss._target_: {target!r} gives a {type(loss).__name__}, not a torch.nn.Module.")
    if isinstance(loss, (*CLASSIFYING, *REGRESSING, BinaryCrossEntropy)):
        _try_out(loss, settings, data)
    return PerSample(loss, data.task)


def balanced_weights(key: str, data: "Data") -> Tensor:
    """Weights [k] float32 that let every class count the same over the training part: n / (k * count)."""
    if data.task != "classification":
        raise ConfigError(f"loss.{key} is 'balanced', but data of the task {data.task} has no classes to balance.")
    counts = data.class_counts.double()
    if (counts <= 0).any():
        absent = torch.nonzero(counts <= 0).flatten().tolist()
        raise ConfigError(
            f"loss.{key} is 'balanced', but the training part has no sample of class "
            f"{', '.join(map(str, absent))} (counts: {counts.long().tolist()}). "
            f"Give a list of {len(counts)} weights instead."
        )
    return (counts.sum() / (len(counts) * counts)).float()


def _listed_weights(key: str, given: Any, num_outputs: int) -> Tensor:
    right = f"null, a list of {num_outputs} numbers >= 0" + ("" if key == "pos_weight" else ", or balanced")
    if isinstance(given, str | int | float):
        raise ConfigError(f"loss.{key} is {given!r}: give {right}.")
    try:
        weights = torch.tensor([float(w) for w in given], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss.{key} is {given!r}: give {right}.") from error
    if len(weights) != num_outputs:
        raise ConfigError(f"loss.{key} has {len(weights)} numbers, the data has {num_outputs} outputs: give {right}.")
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ConfigError(f"loss.{key} is {weights.tolist()}: give {right}, finite and not all 0.")
    return weights


def _try_out(loss: nn.Module, settings: Mapping[str, Any], data: "Data") -> None:
    """Compute the loss once: torch checks delta or label_smoothing only then."""
    outputs = torch.zeros(2, data.num_outputs)
    targets = outputs if data.task in ("regression", "multilabel") else torch.zeros(2, dtype=torch.int64)
    try:
        loss(outputs, targets)
    except (RuntimeError, ValueError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in settings.items() if k != "_target_")
        raise ConfigError(f"loss: {type(loss).__name__} refuses ({given}): {error}") from error


def _check_probabilities(data: "Data", name: str) -> None:
    for part in data.splits().values():
        if part.targets is not None and len(part.targets):
            low, high = float(part.targets.min()), float(part.targets.max())
            if low < 0 or high > 1:
                raise ConfigError(
                    f"loss: {name} needs targets between 0 and 1, these lie in {low:g}..{high:g}. Losses that fit: "
                    f"{FITTING['regression']}. Vectors of 0 and 1 are data.task=multilabel."
                )
