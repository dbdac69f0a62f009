"""Metrics of torchmetrics by name."""

import sys
import warnings

import pytest
import sklearn.metrics as sk
import torch
import torchmetrics
from scored import scored

from launcher.core.errors import ConfigError
from launcher.metrics.named import compute_metrics, make_metrics, update_metrics
from launcher.tasks.outputs import Outputs

pytestmark = pytest.mark.versions


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


@pytest.mark.parametrize("d", [1, 2])
def test_named_metrics_of_standardised_targets_are_in_their_own_units(d):
    """Of which relative errors and logarithms tell something."""
    torch.manual_seed(0)
    prices = 900 + 100 * torch.rand(100, d, dtype=torch.float64)
    guesses = prices + 20 * torch.randn(100, d)
    mean, std = prices.mean(0), prices.std(0)
    meaning = Outputs("regression", d, mean=mean, std=std)
    metrics = make_metrics(["MeanAbsolutePercentageError", "MeanSquaredLogError"], meaning)
    for x, y in zip(guesses.split(30), prices.split(30), strict=True):
        update_metrics(metrics, meaning, ((x - mean) / std).float(), ((y - mean) / std).float())
    found = compute_metrics(metrics)
    assert found == {
        "MeanAbsolutePercentageError": pytest.approx(sk.mean_absolute_percentage_error(prices, guesses), rel=1e-4),
        "MeanSquaredLogError": pytest.approx(sk.mean_squared_log_error(prices, guesses), rel=1e-4),
    }


def test_pixels_of_no_class_count_nowhere():
    """As with torchmetrics' own ignore_index, in batches of which one has none that counts."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(6, 3, 5, 4, generator=generator)
    classes = torch.randint(3, (6, 5, 4), generator=generator)
    classes[torch.rand(6, 5, 4, generator=generator) < 0.3] = -100
    classes[2:4] = -100
    meaning = Outputs("segmentation", 3)
    names = ["JaccardIndex", "AUROC", {"name": "F1Score", "average": "macro"}]
    metrics = make_metrics(names, meaning)
    for x, y in zip(scores.split(2), classes.split(2), strict=True):
        update_metrics(metrics, meaning, x, y)
    for name, more in (("JaccardIndex", {}), ("AUROC", {}), ("F1Score", {"average": "macro"})):
        metric = getattr(torchmetrics, name)(task="multiclass", num_classes=3, ignore_index=-100, **more)
        assert float(metrics[name].compute()) == pytest.approx(float(metric(scores.softmax(1), classes)), abs=1e-6)


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
        (["MeanIoU"], "segmentation", ["MeanIoU", "JaccardIndex", "F1Score"]),
        (["AUROC"], "language", ["AUROC", "classification", "language"]),
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
    with pytest.raises(ConfigError, match=r"pip install 'hydra-accelerate-launcher\[metrics\]'"):
        make_metrics(["AUROC"], Outputs("classification", 3))


class Confident(torchmetrics.Metric):
    """Share of samples whose class is given more than a probability."""

    def __init__(self, above, num_classes, **more):
        super().__init__(**more)
        self.above, self.num_classes = above, num_classes
        self.add_state("seen", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, preds, target):
        assert preds.shape == (len(target), self.num_classes)
        self.seen += torch.tensor([(preds.exp().amax(1) > self.above).sum(), len(target)])

    def compute(self):
        return self.seen[0] / self.seen[1]


def test_a_metric_of_a_persons_own_by_target():
    outputs, targets = scored(5)
    meaning = Outputs("classification", 5)
    metrics = make_metrics([{"_target_": f"{__name__}.Confident", "above": 0.5}], meaning)
    update_metrics(metrics, meaning, outputs, targets)
    share = (outputs.softmax(1).amax(1) > 0.5).float().mean().item()
    assert compute_metrics(metrics) == {"Confident": pytest.approx(share)}
    with pytest.raises(ConfigError, match=r"metrics: torch.nn.Linear is no subclass of torchmetrics.Metric"):
        make_metrics([{"_target_": "torch.nn.Linear"}], meaning)
