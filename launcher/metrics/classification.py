"""Metrics of a classification, from counts kept on the device."""

import torch
from torch import Tensor

from launcher.core.errors import BrokenFile

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
        """Count samples by their scores [n, k] and classes [n] int64 in 0..k-1."""
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
        """Counts, [k][k]: rows are the true classes, columns the predicted ones; None for k > MATRIX."""
        return self._cells.view(-1, self.num_classes).tolist() if self._whole else None

    def figures(self) -> dict[str, float]:
        """Metrics in 0..1, nan where no sample was counted.

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
            figures["f1"] = float(2 * right[1] / (true[1] + predicted[1]).clamp_min(1))
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
