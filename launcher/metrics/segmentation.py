"""Metrics of a segmentation, from counts kept on the device."""

import torch
from torch import Tensor


class SegmentationSums:
    """Pixels of k classes that were found, predicted and true.

    Args:
        num_classes: k.
        device: Where outputs and targets will be.
        names: Of the classes, for figures of their own; None: their numbers.
        ignored: The target of what is no class; it counts nowhere.
    """

    def __init__(
        self, num_classes: int, device: torch.device | str, names: list[str] | None = None, ignored: int = -100
    ):
        self._ignored = ignored
        self._counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # found, predicted, true
        self._names = names or [str(number) for number in range(num_classes)]

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count pixels by scores [n, k, h, w] and classes [n, h, w]; one of no class, such as -100, counts nowhere."""
        k = self._counts.shape[1]
        valid = (targets >= 0) & (targets < k) & (targets != self._ignored)
        predicted, true = outputs.argmax(1)[valid], targets[valid].long()
        pairs = torch.bincount(true * k + predicted, minlength=k * k).view(k, k)
        self._counts += torch.stack([pairs.diagonal(), pairs.sum(0), pairs.sum(1)])

    def tensors(self) -> list[Tensor]:
        """As ClassificationSums.tensors."""
        return [self._counts]

    def figures(self) -> dict[str, float]:
        """Metrics over all pixels, in 0..1; nan where no pixel was counted.

        accuracy; mean_iou and mean_dice, over the classes that occur in targets or predictions; iou_NAME and dice_NAME
        of each class, 0 where it is true and never found, nan where it does not occur.
        """
        found, predicted, true = self._counts.cpu().double()
        iou, dice = found / (predicted + true - found), 2 * found / (predicted + true)
        figures = {
            "accuracy": float(found.sum() / true.sum()),
            "mean_iou": float(iou.nanmean()),
            "mean_dice": float(dice.nanmean()),
        }
        for kind, values in (("iou", iou), ("dice", dice)):
            figures |= {f"{kind}_{name}": float(value) for name, value in zip(self._names, values, strict=True)}
        return figures
