"""Metrics of labels against scikit-learn."""

import pytest
import sklearn.metrics as sk
import torch

from launcher.metrics.multilabel import LabelSums

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("k", [1, 4])
def test_labels_are_measured_as_by_sklearn(k):
    generator = torch.Generator().manual_seed(k)
    outputs, targets = torch.randn(300, k, generator=generator), torch.rand(300, k, generator=generator).round()
    outputs[:, 0] = -1.0  # a label that is never predicted
    sums = LabelSums(k, "cpu")
    for rows in (slice(0, 7), slice(7, 300)):
        sums.update(outputs[rows], targets[rows])
    predicted, true = (outputs > 0).int().numpy(), targets.int().numpy()
    assert sums.figures() == pytest.approx(
        {
            "accuracy": sk.accuracy_score(true, predicted),
            "micro_f1": sk.f1_score(true.ravel(), predicted.ravel(), zero_division=0),
            "macro_f1": sum(sk.f1_score(true[:, i], predicted[:, i], zero_division=0) for i in range(k)) / k,
        }
    )
