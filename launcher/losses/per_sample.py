"""Any loss as values and weights per sample, so that means over the global batch are exact."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from launcher.core.errors import BrokenFile, ConfigError
from launcher.losses.focal import FocalLoss

HALF = (torch.float16, torch.bfloat16)


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
LOGISTIC = (nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss)  # a sigmoid per output


class PerSample(nn.Module):
    """Any loss as values and weights per sample: sums over micro-batches and ranks then give the exact mean.

    The mean over any set of samples is sum(values) / sum(weights), which is what the loss's own
    reduction="mean" gives on all of them at once. A module that returns a scalar (a user's own mean) counts
    by samples. Of a language the loss is given the tokens of all sequences, [b * t, v] and [b * t], as samples of a
    classification; the value of a sequence is the mean over its tokens.

    Args:
        loss: A torch loss (its `reduction` becomes "none"), or any module (outputs, targets) -> [n], [n, ...]
            or a scalar; it may have a method `weights(targets) -> [n] | None`.
        task: Of the data, which says what its targets are; None leaves them as they are.
        padded: Of a language: some targets may be none, -100 or as `ignore_index` says, and weigh nothing.
    """

    def __init__(self, loss: nn.Module, task: str | None = None, padded: bool = True):
        super().__init__()
        self.loss, self.task = loss, task
        self.language = task == "language"
        self.logistic, self.margins = isinstance(loss, LOGISTIC), isinstance(loss, MARGINS)
        if hasattr(loss, "reduction"):
            loss.reduction = "none"  # type: ignore[assignment]
        self.elementwise = isinstance(loss, REGRESSING)
        self.weigh: Callable[[Tensor], Tensor | None] | None = getattr(loss, "weights", None)
        self.padded = padded and self.language
        if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
            self.weigh = self._torch_weights

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values [n], already weighted, and weights [n] (None: each sample weighs 1) of outputs and targets, float32.

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
            targets = _as_shares(outputs, targets)
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
        if weights is None and (self.padded or self.task == "segmentation") and values.shape == targets.shape:
            counts = targets >= 0  # a token or pixel of no class counts nowhere, whatever the loss makes of it
            values, weights = values.where(counts, 0), counts.to(values.dtype)
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
        if ignored < 0 and targets.dim() == 1 and not self.padded:
            return None if weight is None else weight[targets]
        valid = targets != ignored
        return valid.float() if weight is None else weight[targets.where(valid, 0)] * valid


def _as_shares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape and type of outputs [n, k] or [n], as a loss of one sigmoid for each output takes them.

    Classes [n] become one-hot, or where each sample has one output, whether it is the second of two.
    """
    if targets.dim() == 1 and outputs.numel() == len(targets):
        targets = targets.view_as(outputs)
    elif targets.dim() < outputs.dim():
        targets = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)
    return targets.to(outputs.dtype)
