"""Metrics against scikit-learn and torchmetrics."""

import sys
import warnings

import pytest
import sklearn.metrics as sk
import torch
import torchmetrics

from launcher.core.errors import ConfigError
from launcher.metrics.sums import ClassificationSums, RegressionSums, compute_metrics, make_metrics, update_metrics
from launcher.training.outputs import Outputs

pytestmark = pytest.mark.versions


def scored(k: int, n: int = 500, labels: int | None = None, seed: int = 0):
    """Scores that are right more often than chance; targets of the first `labels` classes alone."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(labels or k, (n,), generator=generator)
    outputs = torch.randn(n, k, generator=generator)
    outputs[torch.arange(n), targets] += 1.0
    return outputs, targets


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


def test_a_named_metric_does_not_depend_on_the_batches():
    """Scores that all lie between 0 and 1 are scores in every batch, not probabilities in some."""
    generator = torch.Generator().manual_seed(0)
    outputs, targets = 1.5 * torch.rand(90, 3, generator=generator), torch.arange(90) % 3
    outputs[0] = torch.tensor([200.0, 1.0, 2.0])  # of which the softmax in float32 is 1, 0, 0
    expected = torchmetrics.AUROC(task="multiclass", num_classes=3)(outputs.softmax(1), targets)
    for size in (90, 7, 1):
        meaning = Outputs("classification", 3)
        metrics = make_metrics(["AUROC"], meaning)
        for x, y in zip(outputs.split(size), targets.split(size), strict=True):
            update_metrics(metrics, meaning, x, y)
        assert float(metrics["AUROC"].compute()) == pytest.approx(float(expected), abs=1e-6)


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


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 2000.0])
def test_regression_is_that_of_sklearn_and_torchmetrics(d, offset):
    torch.manual_seed(0)
    targets = torch.randn(500, d) * torch.arange(1.0, d + 1) + offset
    outputs = targets + 0.3 * torch.randn(500, d)
    ranks = [RegressionSums(d, "cpu"), RegressionSums(d, "cpu")]
    for i, (x, y) in enumerate(zip(outputs.split(61), targets.split(61), strict=True)):
        ranks[i % 2].update(x, y)
    for mine, other in zip(ranks[0].tensors(), ranks[1].tensors(), strict=True):
        mine += other
    figures = ranks[0].figures()
    wanted, given = targets.double().numpy(), outputs.double().numpy()
    assert figures["mae"] == pytest.approx(sk.mean_absolute_error(wanted, given), rel=1e-12)
    assert figures["rmse"] == pytest.approx(sk.root_mean_squared_error(wanted, given), rel=1e-12)
    assert figures["r2"] == pytest.approx(sk.r2_score(wanted, given), rel=1e-8)
    r2 = torchmetrics.R2Score()(outputs.double(), targets.double())
    assert figures["r2"] == pytest.approx(float(r2), rel=1e-8)


def test_regression_of_constant_targets_and_of_nothing():
    def r2(outputs, targets):
        sums = RegressionSums(1, "cpu")
        sums.update(outputs, targets)
        return sums.figures()["r2"]

    for value in (0.1, 1 / 3, 7.7, -1e5 / 3):  # the sums of which round up or down
        constant = torch.full((1009,), value, dtype=torch.float64)
        assert r2(constant, constant) == 1.0 and r2(constant + 1, constant) == 0.0
    constant = torch.full((9,), 0.1)
    assert r2(constant, constant) == sk.r2_score(constant, constant) == 1.0
    assert r2(constant + 1, constant) == sk.r2_score(constant, constant + 1) == 0.0
    assert r2(constant[:1], constant[:1]) != r2(constant[:1], constant[:1])  # nan
    assert all(value != value for value in RegressionSums(2, "cpu").figures().values())


def test_named_metrics_are_torchmetrics():
    outputs, targets = scored(4)
    names = ["AUROC", {"name": "FBetaScore", "beta": 0.5, "average": "macro"}, {"name": "FBetaScore", "beta": 2.0}]
    meaning = Outputs("classification", 4)
    metrics = make_metrics(names, meaning)
    assert list(metrics) == ["AUROC", "FBetaScore", "FBetaScore_beta2.0"]
    for x, y in zip(outputs.split(61), targets.split(61), strict=True):
        update_metrics(metrics, meaning, x, y)
    auroc = sk.roc_auc_score(targets, outputs.softmax(1), multi_class="ovr", average="macro")
    assert float(metrics["AUROC"].compute()) == pytest.approx(auroc, abs=1e-6)
    for key, beta, average in (("FBetaScore", 0.5, "macro"), ("FBetaScore_beta2.0", 2.0, "micro")):
        score = sk.fbeta_score(targets, outputs.argmax(1), beta=beta, average=average)
        assert float(metrics[key].compute()) == pytest.approx(score, abs=1e-6)


def test_named_metrics_of_regression():
    torch.manual_seed(0)
    targets = torch.rand(100, 1) + 1
    outputs = targets + 0.1 * torch.randn(100, 1)
    metrics = make_metrics(["SpearmanCorrCoef", "MeanAbsolutePercentageError"], Outputs("regression", 1))
    update_metrics(metrics, Outputs("regression", 1), outputs, targets)
    assert float(metrics["MeanAbsolutePercentageError"].compute()) == pytest.approx(
        sk.mean_absolute_percentage_error(targets, outputs), rel=1e-5
    )
    ranks = [x.flatten().argsort().argsort().double() for x in (outputs, targets)]
    spearman = torch.corrcoef(torch.stack(ranks))[0, 1]
    assert float(metrics["SpearmanCorrCoef"].compute()) == pytest.approx(float(spearman), abs=1e-5)


def test_the_try_leaves_no_trace():
    metric = make_metrics(["Accuracy"], Outputs("classification", 3))["Accuracy"]
    metric.update(torch.eye(3)[:2], torch.tensor([0, 0]))
    assert float(metric.compute()) == 0.5


@pytest.mark.parametrize(
    ("names", "task", "words"),
    [
        (["AUROCC"], "classification", ["AUROCC", "AUROC"]),
        (["MeanSquaredError"], "classification", ["MeanSquaredError", "regression", "classification"]),
        (["AUROC"], "regression", ["AUROC", "regression"]),
        (["BLEUScore"], "classification", ["BLEUScore", "text"]),
        (["ConfusionMatrix"], "classification", ["ConfusionMatrix", "one number"]),
        ([{"name": "Accuracy", "average": "none"}], "classification", ["Accuracy", "one number"]),
        ([{"name": "FBetaScore", "beta": -1.0}], "classification", ["FBetaScore", "beta"]),
        ([{"name": "FBetaScore", "gamma": 1.0}], "classification", ["FBetaScore", "gamma"]),
        ([{"beta": 1.0}], "classification", ["None"]),
        (["AUROC", "AUROC"], "classification", ["AUROC", "twice"]),
    ],
)
def test_wrong_names_are_told(names, task, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError) as raised:
            make_metrics(names, Outputs(task, 3))
    for word in words:
        assert word in str(raised.value)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # what an import of an absent package meets
    assert make_metrics([], Outputs("classification", 3)) == {}
    with pytest.raises(ConfigError, match="pip install torchmetrics"):
        make_metrics(["AUROC"], Outputs("classification", 3))
