"""The losses since the last log line, left on the device until somebody reads them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LossAccumulator:
    """The steps since the last log line: a rank's own sums, left on the device until somebody reads them.

    Attributes:
        steps: Updates done before each of the steps.
        losses: Sum of the (weighted) losses of the rank's samples, one scalar tensor per step.
        weights: Sum of their weights, one per step; for a loss without weights the number of samples.
        grad_norm: Norm of the last gradient before clipping, where it is clipped by it or asked for.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    weights: list[Tensor | float] = field(default_factory=list)
    grad_norm: Tensor | None = None

    def tensors(self, device: torch.device) -> list[Tensor]:
        """[n] losses and [n] weights of this rank, float64."""
        if not self.losses:
            return [torch.zeros(0, dtype=torch.float64, device=device)] * 2
        if any(isinstance(weight, Tensor) for weight in self.weights):
            weights = torch.stack([torch.as_tensor(w, dtype=torch.float64, device=device) for w in self.weights])
        else:  # one copy to the device in place of one a step
            weights = torch.tensor(self.weights, dtype=torch.float64, device=device)
        return [torch.stack(self.losses).double(), weights]

    def clear(self) -> None:
        """Begin anew."""
        self.steps.clear()
        self.losses.clear()
        self.weights.clear()
        self.grad_norm = None  # else one whose batches were all left out would show that of the one before
