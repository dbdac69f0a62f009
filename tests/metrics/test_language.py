"""A language: its counts beside plain PyTorch."""

import math

import pytest
import torch
from texts import CPU, scored
from torch.nn import functional as F

from launcher.metrics.language import LanguageSums

pytestmark = pytest.mark.versions


def test_figures_are_those_of_torch_however_the_tokens_are_cut():
    outputs, targets = scored(n=20)
    whole = LanguageSums(CPU)
    for part in zip(outputs.split([7, 1, 12]), targets.split([7, 1, 12]), strict=True):
        whole.update(*part)
    found = whole.figures()
    loss = F.cross_entropy(outputs.double().transpose(1, 2), targets)
    assert found["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((outputs.argmax(2) == targets).double().mean().item())
    sure = LanguageSums(CPU)
    sure.update(100 * F.one_hot(targets, 11).float(), targets)
    guess = LanguageSums(CPU)
    guess.update(torch.zeros(2, 6, 11), targets[:2])
    assert sure.figures() == {"accuracy": 1, "perplexity": 1} and guess.figures()["perplexity"] == pytest.approx(11)
    assert math.isnan(LanguageSums(CPU).figures()["perplexity"])
