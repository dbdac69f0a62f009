"""Focal loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FocalLoss(nn.Module):
    """Cross-entropy that turns away from what is already classified well.

    `alpha_y * (1 - p_y)^gamma * -log p_y` for a sample of class y: Lin et al., Focal Loss for Dense Object
    Detection (2017), https://arxiv.org/abs/1708.02002, with the softmax over k classes in the place of their
    sigmoid. The mean divides by the sum of alpha [k] over the samples, as torch.nn.CrossEntropyLoss(weight=alpha) does.
    A token or pixel of no class (-100) has the loss 0, and with alpha the weight 0.
    """

    alpha: Tensor | None

    def __init__(self, gamma: float, alpha: Tensor | list[float] | None = None):
        super().__init__()
        self.gamma = float(gamma)
        self.register_buffer("alpha", None if alpha is None else torch.as_tensor(alpha, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss [n, ...] float32 of logits [n, k, ...] of any floating dtype and classes [n, ...] int64."""
        nll = F.cross_entropy(outputs.float(), targets, reduction="none")
        # 1 - p is exactly 0 for a sample that is surely right; below gamma = 1 the derivative of a power is
        # infinite there, and infinity times nll = 0 is nan. Behind the clamp it is 0, as the loss's own is.
        missing = (-torch.expm1(-nll)).clamp_min(torch.finfo(torch.float32).tiny)
        values = missing**self.gamma * nll
        return values if self.alpha is None else values * self._alpha_of(self.alpha, targets)

    def weights(self, targets: Tensor) -> Tensor | None:
        """What each sample counts in the mean: alpha of its class, or None for 1."""
        return None if self.alpha is None else self._alpha_of(self.alpha, targets)

    @staticmethod
    def _alpha_of(alpha: Tensor, targets: Tensor) -> Tensor:
        """Alpha of each class, 0 for a target that is none, such as -100."""
        return alpha[targets.clamp(min=0)] * (targets >= 0)
