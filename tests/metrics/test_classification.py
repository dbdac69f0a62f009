"""Metrics of classes against scikit-learn and torchmetrics."""

import pytest
import sklearn.metrics as sk
import torch
import torchmetrics
from scored import scored

from launcher.metrics.classification import ClassificationSums
from launcher.metrics.named import compute_metrics, make_metrics, update_metrics
from launcher.tasks.outputs import Outputs

pytestmark = pytest.mark.versions


@pytest.mark.parametrize(("k", "labels"), [(2, 2), (5, 5), (6, 6), (10, 10), (10, 3), (100, 40), (1001, 900)])
def test_classification_is_that_of_sklearn_and_torchmetrics(k, labels):
    outputs, targets = scored(k, labels=labels)
    outputs[:, 1] -= 100.0  # one class is never predicted
    # Two ranks with ragged batches: their sums are added up as the all-reduce does.
    ranks = [ClassificationSums(k, "cpu"), ClassificationSums(k, "cpu")]
    for i, (x, y) in enumerate(zip(outputs.split(61), targets.split(61), strict=True)):
        ranks[i % 2].update(x, y)
    for mine, other in zip(ranks[0].tensors(), ranks[1].tensors(), strict=True):
        mine += other
    figures, predicted = ranks[0].figures(), outputs.argmax(1)
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted), abs=1e-15)
    f1 = sk.f1_score(targets, predicted, average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(f1, abs=1e-14)
    matrix = sk.confusion_matrix(targets, predicted, labels=range(k)).tolist()
    assert ranks[0].confusion() == (matrix if k <= 1000 else None)  # of many classes it would fill the memory
    assert sum(tensor.numel() for tensor in ranks[0].tensors()) <= 1000**2 + 2
    micro = torchmetrics.Accuracy(task="multiclass", num_classes=k, average="micro")
    assert figures["accuracy"] == pytest.approx(float(micro(outputs, targets)), abs=1e-6)
    if k > 5:
        top5 = torchmetrics.Accuracy(task="multiclass", num_classes=k, average="micro", top_k=5)
        assert figures["top5"] == pytest.approx(float(top5(outputs, targets)), abs=1e-6)
        assert figures["top5"] == pytest.approx(
            sk.top_k_accuracy_score(targets, outputs, k=5, labels=range(k)), abs=1e-15
        )
    else:
        assert "top5" not in figures
    recall = torchmetrics.Recall(task="multiclass", num_classes=k, average="none")(outputs, targets).tolist()
    for c, share in enumerate(ranks[0].per_class_accuracy()):
        if (targets == c).any():
            assert share == pytest.approx(recall[c], abs=1e-6)
        else:
            assert share is None


def test_many_classes_take_no_table_of_samples_and_bins():
    """As torchmetrics makes one where kernels are to be deterministic: 16 GB for twice 1,001 samples."""
    torch.set_deterministic_debug_mode("error")
    outputs, targets = scored(1001, n=900)
    meaning = Outputs("classification", 1001)
    metrics = make_metrics(["F1Score", "CohenKappa"], meaning)
    update_metrics(metrics, meaning, outputs, targets)
    found = compute_metrics(metrics)
    assert torch.get_deterministic_debug_mode() == 2
    assert found["CohenKappa"] == pytest.approx(sk.cohen_kappa_score(targets, outputs.argmax(1)), abs=1e-6)


def test_classification_of_half_precision_and_of_nothing():
    outputs, targets = scored(7)
    sums = ClassificationSums(7, "cpu")
    assert all(value != value for value in sums.figures().values())
    sums.update(outputs.bfloat16(), targets)
    assert sums.figures()["accuracy"] == sk.accuracy_score(targets, outputs.bfloat16().argmax(1))
