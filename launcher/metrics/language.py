"""Metrics of a language, from sums kept on the device."""

import torch
from torch import Tensor
from torch.nn import functional as F


class LanguageSums:
    """Tokens, how many of them were the likeliest, and the sum of -log p, in float64, on the device of the outputs.

    Args:
        device: Where outputs and targets will be.
        ignored: The target of what is none, such as the filling of a short sequence; it counts nowhere.
    """

    def __init__(self, device: torch.device | str, ignored: int = -100):
        self._ignored = ignored
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count the tokens of sequences by the scores of the next token [n, t, v] and the next tokens [n, t]."""
        outputs, targets = outputs.flatten(0, 1), targets.flatten().long()
        valid = targets != self._ignored
        self._sums[0] += valid.sum()
        self._sums[1] += ((outputs.argmax(1) == targets) & valid).sum()
        each = F.cross_entropy(outputs, targets, reduction="none", ignore_index=self._ignored)
        self._sums[2] += each.double().sum()

    def tensors(self) -> list[Tensor]:
        """As ClassificationSums.tensors."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Metrics over all tokens, nan where no token was counted.

        accuracy, in 0..1; perplexity, exp of the mean of -log p, whatever the loss: 1 for a model that knows each
        token, v for one that guesses.
        """
        tokens, right, nats = self._sums.cpu()
        return {"accuracy": float(right / tokens), "perplexity": float((nats / tokens).exp())}
