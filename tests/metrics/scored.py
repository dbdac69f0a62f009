"""Scores and targets to measure."""

import torch


def scored(k: int, n: int = 500, labels: int | None = None, seed: int = 0):
    """Scores that are right more often than chance; targets of the first `labels` classes alone."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(labels or k, (n,), generator=generator)
    outputs = torch.randn(n, k, generator=generator)
    outputs[torch.arange(n), targets] += 1.0
    return outputs, targets
