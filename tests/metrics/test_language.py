"""Metrics of a language against its cross-entropy."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from launcher.metrics.language import LanguageSums


def test_perplexity_is_that_of_all_tokens_together():
    scores, tokens = torch.randn(6, 5, 11), torch.randint(11, (6, 5), dtype=torch.uint8)
    sums = LanguageSums("cpu")
    for rows in (slice(0, 1), slice(1, 6)):
        sums.update(scores[rows], tokens[rows])
    mean = cross_entropy(scores.flatten(0, 1).double(), tokens.flatten().long()).item()
    right = (scores.argmax(2) == tokens).double().mean().item()
    assert sums.figures() == pytest.approx({"accuracy": right, "perplexity": math.exp(mean)}, rel=1e-6)
