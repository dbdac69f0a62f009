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
        """Loss of each sample.

        Args:
            outputs: Logits, [n, k], any floating dtype; or [n], one for each sample.
            targets: As `as_shares` takes them.

        Returns:
            [n], float32 (float64 for float64 logits).
        """
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        values = F.binary_cross_entropy_with_logits(
            outputs, as_shares(outputs, targets), pos_weight=self.pos_weight, reduction="none"
        )
        return values if values.dim() == 1 else values.flatten(1).mean(1)


def as_shares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets as a loss of one sigmoid for each output takes them.

    Args:
        outputs: [n, k], or [n].
        targets: Classes [n]: the second of two where each sample has one output, else one-hot; or anything of the shape
            of outputs, as it is.

    Returns:
        Of the shape and type of outputs.
    """
    if targets.dim() == 1 and outputs.numel() == len(targets):
        targets = targets.view_as(outputs)
    elif targets.dim() < outputs.dim():
        targets = torch.zeros_like(outputs).scatter_(1, targets.unsqueeze(1), 1.0)
    return targets.to(outputs.dtype)
