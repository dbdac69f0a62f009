"""Metrics of labels of which a sample has any number, from counts kept on the device."""

import torch
from torch import Tensor


class LabelSums:
    """Counts for k labels of which a sample has any number: right, missed and invented ones of each, and samples."""

    def __init__(self, num_labels: int, device: torch.device | str):
        # Rows: found, found or there but not both, samples with every label right, samples.
        self._sums = torch.zeros(4, num_labels, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count samples by logits [n, k], which predict a label above 0, one half, and whether each is there [n, k]."""
        predicted, true = outputs > 0, targets > 0.5
        wrong = predicted != true
        right = (~wrong).all(1, keepdim=True).expand_as(wrong)
        self._sums += torch.stack([predicted & true, wrong, right, torch.ones_like(wrong)]).sum(1)

    def tensors(self) -> list[Tensor]:
        """As ClassificationSums.tensors."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Metrics in 0..1, nan where no sample was counted.

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
