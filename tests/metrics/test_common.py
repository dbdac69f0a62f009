"""What all counts of metrics have in common."""

from typing import get_args

import pytest
import torch

from launcher.tasks.outputs import Sums

MADE = {"ClassificationSums": (3,), "LabelSums": (3,), "RegressionSums": (3,), "LanguageSums": ()}
GIVEN = {
    "ClassificationSums": (torch.randn(8, 3), torch.arange(8) % 3),
    "LabelSums": (torch.randn(8, 3), torch.ones(8, 3)),
    "RegressionSums": (torch.randn(8, 3), torch.randn(8, 3)),
    "LanguageSums": (torch.randn(8, 4, 3), torch.ones(8, 4, dtype=torch.long)),
}

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("kind", get_args(Sums))
def test_those_of_two_ranks_add_up(kind):
    whole, first, second = (kind(*MADE[kind.__name__], "cpu") for _ in range(3))
    outputs, targets = GIVEN[kind.__name__]
    whole.update(outputs, targets)
    first.update(outputs[:3], targets[:3])
    second.update(outputs[3:], targets[3:])
    for mine, other in zip(first.tensors(), second.tensors(), strict=True):
        mine += other
    assert first.figures() == pytest.approx(whole.figures())
