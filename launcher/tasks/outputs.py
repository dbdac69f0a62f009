"""What the outputs of a model mean, by which they are measured and shown: classes, labels, quantities or tokens."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from launcher.batching.padding import IGNORED
from launcher.core.errors import ConfigError
from launcher.losses.loss import gives
from launcher.metrics.classification import ClassificationSums
from launcher.metrics.language import LanguageSums
from launcher.metrics.multilabel import LabelSums
from launcher.metrics.regression import RegressionSums
from launcher.metrics.segmentation import SegmentationSums
from launcher.tasks.task import Sums

if TYPE_CHECKING:
    from launcher.data.source import Data

TASKS = ("classification", "multilabel", "regression", "language", "segmentation")


@dataclass(frozen=True)
class Outputs:
    """How to read the outputs of a model.

    Attributes:
        given: `scores`, of which softmax makes probabilities, or numbers as they are; `logits`, each with a sigmoid of
            its own; or `probabilities`.
    """

    task: str  # as Data.task
    count: int  # classes, labels, numbers or tokens
    given: str = "scores"
    one_logit: bool = False  # of a classification: one output says how sure the second of two classes is
    names: list[str] | None = None  # of classes or labels; None where unknown
    mean: Tensor | None = None  # [d] float64, by which targets of a regression were standardised; None: they were not
    std: Tensor | None = None  # [d] float64
    near: Tensor | None = None  # [d] float64, near the targets of a regression
    ignored: int = IGNORED  # the target of a token or pixel that is none

    @property
    def dense(self) -> bool:
        """Whether a sample has many outputs, for its tokens or pixels."""
        return self.task in ("language", "segmentation")

    @classmethod
    def of(cls, data: "Data", loss: Mapping[str, Any]) -> "Outputs":
        """What a model gives that is trained on some data by a loss, as far as they and its settings tell."""
        near = data.train.targets if data.task == "regression" else None
        if near is not None and len(near):
            near = near.double().reshape(len(near), -1).mean(0)
        given = gives(loss, data.task)
        scale = (data.target_mean, data.target_std)
        ignored = loss.get("ignore_index", IGNORED)
        return cls(data.task, data.num_outputs, given, False, data.class_names, *scale, near, ignored)

    def fitted(self, outputs: Any, samples: int) -> "Outputs":
        """The same, once the outputs for some samples were seen.

        Raises:
            ConfigError: They are not what the task needs.
        """
        needed = {
            "classification": f"[{samples}, {self.count}], a score for each class",
            "multilabel": f"[{samples}, {self.count}], a logit for each label",
            "regression": f"[{samples}, {self.count}], the numbers to predict",
            "language": f"[{samples}, tokens, {self.count}], a score for each token of the vocabulary",
            "segmentation": f"[{samples}, {self.count}, height, width], a score for each class at each pixel",
        }[self.task]
        binary = self.task == "classification" and self.count == 2
        if binary:
            needed += f"; or [{samples}, 1], a logit for the second class"
        if not isinstance(outputs, Tensor):
            kind = type(outputs).__name__
            inside = f" of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
            raise ConfigError(f"model: gives a {kind}{inside} for {samples} samples, not one tensor {needed}.")
        shape = list(outputs.shape)
        alone = binary and shape in ([samples], [samples, 1])
        right = {
            "language": len(shape) == 3 and shape[0] == samples and shape[2] == self.count,
            "segmentation": len(shape) == 4 and shape[:2] == [samples, self.count],
            "regression": shape == [samples, self.count] or (self.count == 1 and shape == [samples]),
        }.get(self.task, shape == [samples, self.count])
        if not right and not alone:
            raise ConfigError(f"model: gives {shape} for {samples} samples; the task {self.task} needs {needed}.")
        return replace(self, one_logit=alone)

    def scores(self, outputs: Tensor) -> Tensor:
        """Outputs as everything below takes them: of one logit those of two classes, of a regression numbers [n, d]."""
        if self.given == "probabilities":
            outputs = outputs.logit(1e-7)
        if self.task == "regression":
            outputs = outputs.reshape(len(outputs), -1)
            return outputs if self.given == "scores" else outputs.sigmoid()
        if self.task == "classification" and outputs.numel() == len(outputs):
            outputs = outputs.reshape(-1, 1)
            return torch.cat([torch.zeros_like(outputs), outputs], 1)
        return outputs

    def in_own_units(self, values: Tensor) -> Tensor:
        """Targets or scores [n] or [n, d] of a regression as the data had them, [n, d] float64."""
        values = values.double().reshape(len(values), -1)
        if self.mean is None or self.std is None:
            return values
        return values * self.std.to(values.device) + self.mean.to(values.device)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of each class or label, [n, k] in 0..1: of classes of sum 1 but where each had a sigmoid of its own."""
        apart = self.task == "multilabel" or (self.given != "scores" and not self.one_logit)
        return scores.sigmoid() if apart else scores.softmax(1)

    def sums(self, device: torch.device | str) -> Sums:
        """What counts the metrics of the task."""
        if self.task == "language":
            return LanguageSums(device, self.ignored)
        if self.task == "segmentation":
            return SegmentationSums(self.count, device, self.names, self.ignored)
        if self.task == "multilabel":
            return LabelSums(self.count, device)
        if self.task == "classification":
            return ClassificationSums(self.count, device, self.one_logit)
        return RegressionSums(self.count, device, self.near, self.std)

    def columns(self, scores: Tensor, targets: Tensor | None, whole: bool) -> dict[str, np.ndarray]:
        """What the model says of samples, by the name of a column, [n] each.

        Args:
            scores: From `scores`, on the host.
            targets: What is true; None where nobody knows.
            whole: The probability of each class; else of the one that is predicted.

        Returns:
            Of classes `predicted`, `target` and `p_NAME` for each, or `probability`; of labels the three for each
            label; of numbers, in the unit of the data as they were given, `predicted` and `target`, numbered where
            there are several.
        """
        names = self.names or [str(number) for number in range(self.count)]
        if self.task == "regression":
            pairs = {"predicted": scores} | ({} if targets is None else {"target": targets})
            found = {}
            for name, values in pairs.items():
                for i, column in enumerate(self.in_own_units(values).unbind(1)):
                    found[f"{name}_{i}" if self.count > 1 else name] = column.numpy()
            return found
        shares = self.probabilities(scores).numpy()
        of_each = {f"p_{name}": shares[:, i] for i, name in enumerate(names)}
        if self.task == "multilabel":
            found = {f"predicted_{name}": (scores[:, i] > 0).long().numpy() for i, name in enumerate(names)}
            if targets is not None:
                found |= {f"target_{name}": targets[:, i].long().numpy() for i, name in enumerate(names)}
            return found | of_each
        best = scores.argmax(1).numpy()  # as the accuracy counts: rounding may make two shares equal
        found = {"predicted": np.array(names)[best]}
        if targets is not None:
            found["target"] = np.array(names)[targets.numpy()]
        return found | (of_each if whole else {"probability": shares[np.arange(len(best)), best]})

    def rows(self, scores: Tensor, targets: Tensor | None) -> Iterator[list[str]]:
        """The columns as texts, row by row; numbers with as many digits as they have."""
        digits = 9
        if self.task == "regression" and self.mean is not None and self.std is not None:
            far = (self.mean.abs() / self.std).max().item()
            digits = min(17, 9 + max(0, math.ceil(math.log10(max(far, 1)))))
        texts = []
        for name, column in self.columns(scores, targets, True).items():
            exact = 15 if name.startswith("target") else digits
            values = column.tolist()
            texts.append([f"{value:.{exact}g}" if column.dtype.kind == "f" else str(value) for value in values])
        return (list(row) for row in zip(*texts, strict=True))
