"""A sigmoid for each output, and targets as it takes them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BinaryCrossEntropy(nn.Module):
    """One sigmoid for each of k outputs, averaged over them: labels that do not exclude each other, or a yes or no.

    Args:
        pos_weight: Weight of the positive case of each output, [k], or None for 1.
    """

    pos_weight: Tensor | None

    def __init__(self, pos_weight: Tensor | list[float] | None = None):
        super().__init__()
        self.register_buffer(
            "pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight, dtype=torch.float32)
        )

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss [n] of each sample, float32 (float64 for float64 logits).

        Args:
            outputs: Logits [n, k], or [n], of any floating dtype.
            targets: As `as_shares` takes them.
        """
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        values = F.binary_cross_entropy_with_logits(
            outputs, as_shares(outputs, targets), pos_weight=self.pos_weight, reduction="none"
        )
        return values if values.dim() == 1 else values.flatten(1).mean(1)


def as_shares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape and type of outputs [n, k] or [n], as a loss of one sigmoid for each output takes them.

    Classes [n] become one-hot, or where each sample has one output, whether it is the second of two.
    """
    if targets.dim() == 1 and outputs.numel() == len(targets):
        targets = targets.view_as(outputs)
    elif targets.dim() < outputs.dim():
        targets = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)
    return targets.to(outputs.dtype)
