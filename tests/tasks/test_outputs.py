"""What outputs mean: one logit, labels, shares and numbers, beside scikit-learn, torchmetrics and plain formulas."""

import csv
import json

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics
from data_sources import table
from processes import command, own, summary, train
from torch import nn
from torch.nn import functional as F

from launcher.core.errors import BrokenFile, ConfigError
from launcher.data import Data, TensorSplit
from launcher.losses.loss import build_loss, fit_task, gives
from launcher.losses.per_sample import PerSample
from launcher.metrics.classification import ClassificationSums
from launcher.metrics.multilabel import LabelSums
from launcher.metrics.named import make_metrics, update_metrics
from launcher.metrics.regression import RegressionSums
from launcher.tasks.outputs import Outputs

BCE = {"_target_": "torch.nn.BCEWithLogitsLoss", "pos_weight": None}


def source(task, targets, k, inputs=None):
    part = TensorSplit(torch.zeros(len(targets), 2) if inputs is None else inputs, targets)
    return Data("own", task, (2,), k, part, part, part)


def added(sums):
    """The sums of two ranks, as an all-reduce adds them."""
    for mine, other in zip(sums[0].tensors(), sums[1].tensors(), strict=True):
        mine += other
    return sums[0]


# One logit


@pytest.mark.parametrize("shape", [(300,), (300, 1)])
def test_one_logit_is_a_yes_or_no(shape):
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(300, generator=generator) > 0.4).long()
    logits = 2 * torch.randn(300, generator=generator) + targets
    meaning = Outputs.of(source("classification", targets, 2), BCE).fitted(logits.view(shape), 300)
    assert meaning.one_logit
    scores = meaning.scores(logits.view(shape))
    torch.testing.assert_close(meaning.probabilities(scores)[:, 1], logits.sigmoid())
    sums = [meaning.sums("cpu"), meaning.sums("cpu")]
    for i, (x, y) in enumerate(zip(scores.split(61), targets.split(61), strict=True)):
        sums[i % 2].update(x, y)
    figures, predicted = added(sums).figures(), (logits > 0).long()
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted), abs=1e-15)
    assert figures["f1"] == pytest.approx(sk.f1_score(targets, predicted), abs=1e-14)
    assert figures["macro_f1"] == pytest.approx(sk.f1_score(targets, predicted, average="macro"), abs=1e-14)
    assert sums[0].confusion() == sk.confusion_matrix(targets, predicted).tolist()
    names = ["AUROC", "F1Score", "Recall", "BinaryAUROC", {"name": "AveragePrecision"}]
    metrics = make_metrics(names, meaning)
    for x, y in zip(scores.split(7), targets.split(7), strict=True):
        update_metrics(metrics, meaning, x, y)
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found["AUROC"] == found["BinaryAUROC"] == pytest.approx(sk.roc_auc_score(targets, logits), abs=1e-6)
    assert found["F1Score"] == pytest.approx(figures["f1"], abs=1e-6)
    assert found["Recall"] == pytest.approx(sk.recall_score(targets, predicted), abs=1e-6)
    assert found["AveragePrecision"] == pytest.approx(sk.average_precision_score(targets, logits), abs=1e-6)


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_the_loss_of_one_logit_is_torchs(shape):
    torch.manual_seed(0)
    logits, targets = torch.randn(50), torch.arange(50) % 2
    values, weights = build_loss(BCE, source("classification", targets, 2))(logits.view(shape), targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    torch.testing.assert_close(values, expected)
    assert weights is None
    shares = build_loss({"_target_": "torch.nn.BCELoss"}, source("classification", targets, 2))
    torch.testing.assert_close(shares(logits.sigmoid().view(shape), targets)[0], expected, rtol=1e-4, atol=1e-5)
    weighted = build_loss(BCE | {"pos_weight": [3.0]}, source("classification", targets, 2))
    torch.testing.assert_close(
        weighted(logits.view(shape), targets)[0],
        F.binary_cross_entropy_with_logits(logits, targets.float(), pos_weight=torch.tensor(3.0), reduction="none"),
    )


def test_two_scores_with_a_sigmoid_each_stay_what_they_were():
    outputs = torch.randn(9, 2)
    meaning = Outputs.of(source("classification", torch.arange(8) % 2, 2), BCE).fitted(outputs, 9)
    assert not meaning.one_logit and torch.equal(meaning.scores(outputs), outputs)
    torch.testing.assert_close(meaning.probabilities(outputs), outputs.sigmoid())
    plain = Outputs("classification", 2)
    torch.testing.assert_close(plain.probabilities(outputs), outputs.softmax(1))
    metrics = make_metrics([{"name": "AUROC", "task": "binary"}], plain)  # whoever asks for it
    update_metrics(metrics, plain, outputs, torch.arange(9) % 2)
    expected = sk.roc_auc_score(torch.arange(9) % 2, outputs.softmax(1)[:, 1])
    assert float(metrics["AUROC"].compute()) == pytest.approx(expected, abs=1e-6)


def test_probabilities_that_a_model_gives_are_those_of_its_predictions():
    shares = torch.tensor([[0.2], [0.7], [0.5001]])
    settings = {"_target_": "torch.nn.BCELoss"}
    meaning = Outputs.of(source("classification", torch.arange(4) % 2, 2), settings).fitted(shares, 3)
    scores = meaning.scores(shares)
    torch.testing.assert_close(meaning.probabilities(scores)[:, 1:], shares)
    assert scores.argmax(1).tolist() == [0, 1, 1]


OWN = """
import torch
from torch import nn
from torch.nn import functional as F

class OneLogit(nn.Module):
    def __init__(self, in_features):
        super().__init__()
        self.line = nn.Linear(in_features, 1)

    def forward(self, x):
        return self.line(x)

class Binary(nn.Module):
    def forward(self, outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float(), reduction="none")
"""


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_with_one_logit_from_end_to_end(world, tmp_path):
    """The share of class 0, 0.618, was its accuracy, and four cells stood under five names."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/binary.yaml").write_text("_target_: own.Binary\n")
    random = np.random.RandomState(0)
    truth = (random.rand(400) > 0.4).astype(int)
    rows = [[random.randn() + 1.9 * k, random.randn(), "ny"[k]] for k in truth]
    table(tmp_path / "t.csv", ["a", "b", "y"], rows)
    words = ["--config-dir", "conf", "data=csv", "data.path=t.csv", "data.target=y", "model._target_=own.OneLogit"]
    words += ["loss=binary", "epochs=8", "threads=1", "hydra.run.dir=run", "metrics=[AUROC]", "wandb.tables=5"]
    train(words, tmp_path, world).ok()
    command("predict", ["run_dir=run", "part=test", "checkpoint=last"], tmp_path).ok()
    command("evaluate", ["run_dir=run", "checkpoint=last"], tmp_path).ok()
    with (tmp_path / "predictions.csv").open() as file:
        found = list(csv.reader(file))
    assert found[0] == ["sample", "predicted", "target", "p_n", "p_y"] and {len(row) for row in found} == {5}
    right = [row[1] == row[2] for row in found[1:]]
    final = summary(tmp_path / "run")["final"]
    assert final["test/accuracy"] == pytest.approx(sum(right) / len(right)) and final["test/accuracy"] > 0.75
    assert all((float(row[4]) > 0.5) == (row[1] == "y") for row in found[1:])
    auroc = sk.roc_auc_score([row[2] == "y" for row in found[1:]], [float(row[4]) for row in found[1:]])
    assert final["test/AUROC"] == pytest.approx(auroc, abs=1e-6)
    f1 = sk.f1_score([row[2] for row in found[1:]], [row[1] for row in found[1:]], pos_label="y")
    assert final["test/f1"] == pytest.approx(f1)
    measured = json.loads((tmp_path / "run/evaluation_test.json").read_text())
    assert measured["metrics"]["accuracy"] == final["test/accuracy"] and measured["confusion"]


# Several labels


def labelled(n=400, k=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, k, generator=generator) > torch.linspace(0.2, 0.95, k)).float()
    return 2 * torch.randn(n, k, generator=generator) + 2 * targets - 1, targets


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_labels_are_measured_as_by_sklearn_and_torchmetrics(k):
    outputs, targets = labelled(k=k)
    outputs[:, -1] = -3  # one is never predicted
    sums = [LabelSums(k, "cpu"), LabelSums(k, "cpu")]
    for i, (x, y) in enumerate(zip(outputs.split(61), targets.split(61), strict=True)):
        sums[i % 2].update(x, y)
    figures, predicted, true = added(sums).figures(), (outputs > 0).int().numpy(), targets.int().numpy()
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted), abs=1e-15)
    for average in ("micro", "macro"):
        expected = sk.f1_score(true.reshape(-1, k), predicted, average=average, zero_division=0) if k > 1 else (
            sk.f1_score(true[:, 0], predicted[:, 0], zero_division=0))  # fmt: skip
        assert figures[f"{average}_f1"] == pytest.approx(expected, abs=1e-14)
    if k > 1:
        exact = torchmetrics.classification.MultilabelExactMatch(num_labels=k)
        assert figures["accuracy"] == pytest.approx(float(exact(outputs.sigmoid(), targets.int())), abs=1e-6)
    else:
        metrics = make_metrics(["AUROC"], Outputs("multilabel", 1))
        update_metrics(metrics, Outputs("multilabel", 1), outputs + targets, targets)
        expected = sk.roc_auc_score(targets[:, 0], (outputs + targets)[:, 0])
        assert float(metrics["AUROC"].compute()) == pytest.approx(expected, abs=1e-6)
    assert all(value != value or value == 0 for value in LabelSums(k, "cpu").figures().values())


def test_torchmetrics_of_labels_by_name():
    outputs, targets = labelled()
    meaning = Outputs("multilabel", 5, "logits")
    names = ["AUROC", {"name": "F1Score", "average": "micro"}, "MultilabelExactMatch", "HammingDistance"]
    metrics = make_metrics(names, meaning)
    for x, y in zip(outputs.split(61), targets.split(61), strict=True):
        update_metrics(metrics, meaning, x, y)
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    sums = LabelSums(5, "cpu")
    sums.update(outputs, targets)
    assert found["AUROC"] == pytest.approx(sk.roc_auc_score(targets, outputs, average="macro"), abs=1e-6)
    assert found["F1Score"] == pytest.approx(sums.figures()["micro_f1"], abs=1e-6)
    assert found["MultilabelExactMatch"] == pytest.approx(sums.figures()["accuracy"], abs=1e-6)
    assert found["HammingDistance"] == pytest.approx(sk.hamming_loss(targets, outputs > 0), abs=1e-6)
    with pytest.raises(ConfigError, match="metrics: MeanSquaredError is a metric for regression"):
        make_metrics(["MeanSquaredError"], meaning)


def test_numbers_of_0_and_1_with_a_sigmoid_each_are_labels():
    outputs, targets = labelled()
    data = fit_task(source("regression", targets, 5), BCE)
    assert data.task == "multilabel" and data.facts()["num_classes"] == 5
    values, _ = build_loss(BCE, data)(outputs, targets)
    torch.testing.assert_close(values.mean(), F.binary_cross_entropy_with_logits(outputs, targets))
    assert fit_task(source("regression", targets, 5), {"_target_": "torch.nn.MSELoss"}).task == "regression"
    shares = fit_task(source("regression", targets * 0.5, 5), BCE)
    assert shares.task == "regression" and gives(BCE, "regression") == "logits"
    meaning = Outputs.of(shares, BCE).fitted(outputs, 400)
    sums = meaning.sums("cpu")
    sums.update(meaning.scores(outputs), shares.train.targets)
    assert sums.figures()["r2"] == pytest.approx(sk.r2_score(targets * 0.5, outputs.sigmoid()), rel=1e-4)
    for loss in ("CrossEntropyLoss", "MSELoss"):
        with pytest.raises(ConfigError, match=r"does not fit data of the task multilabel.*binary_cross_entropy"):
            build_loss({"_target_": f"torch.nn.{loss}"}, source("multilabel", targets, 5))


MULTI = """
import torch
from launcher.data import Data, TensorSplit

def load():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(6, 3, generator=g)
    def part(n):
        x = torch.randn(n, 6, generator=g)
        return TensorSplit(x, (x @ w > 0).float())
    names = ["red", "round", "ripe"]
    return Data("fruit", "multilabel", (6,), 3, part(300), part(60), part(80), class_names=names)
"""


def test_a_run_with_labels_from_end_to_end(tmp_path):
    """They were numbers, with an r2 of -16.5 of their logits."""
    (tmp_path / "own.py").write_text(MULTI)
    words = ["data._target_=own.load", "loss=binary_cross_entropy", "loss.pos_weight=[1,2,1]", "epochs=20", "threads=1"]
    words += ["hydra.run.dir=run", "checkpoint.best=eval/macro_f1", "checkpoint.best_mode=max", "metrics=[AUROC]"]
    train([*words, "optimizer.lr=0.3"], tmp_path).ok()
    command("predict", ["run_dir=run", "part=test", "checkpoint=last"], tmp_path).ok()
    with (tmp_path / "predictions.csv").open() as file:
        found = list(csv.DictReader(file))
    names = ["red", "round", "ripe"]
    assert list(found[0]) == ["sample", *(f"{what}_{name}" for what in ("predicted", "target", "p") for name in names)]
    truth = own(tmp_path).load().test.targets.int().numpy()
    assert (np.array([[int(row[f"target_{name}"]) for name in names] for row in found]) == truth).all()
    predicted = np.array([[int(row[f"predicted_{name}"]) for name in names] for row in found])
    shares = np.array([[float(row[f"p_{name}"]) for name in names] for row in found])
    assert ((shares > 0.5) == predicted).all()
    final = summary(tmp_path / "run")["final"]
    assert final["test/accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted)) and final["test/accuracy"] > 0.7
    assert final["test/macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert final["test/micro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="micro"))
    assert final["test/AUROC"] == pytest.approx(sk.roc_auc_score(truth, shares), abs=1e-5)
    assert "test/r2" not in final
    command("export", ["run_dir=run", "output=out", "checkpoint=last"], tmp_path).ok()
    measured = json.loads((tmp_path / "out/metadata.json").read_text())["measured"]
    assert measured["test/accuracy"] == final["test/accuracy"]


# Numbers


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9, -1e12])
def test_r2_of_targets_far_from_zero_is_that_of_sklearn(offset):
    torch.manual_seed(0)
    targets = torch.randn(500, 2, dtype=torch.float64) + offset
    outputs = targets + 0.3 * torch.randn(500, 2)
    data = source("regression", targets, 2)
    sums = [Outputs.of(data, {"_target_": "torch.nn.MSELoss"}).sums("cpu") for _ in range(2)]
    for i, (x, y) in enumerate(zip(outputs.split(61), targets.split(61), strict=True)):
        sums[i % 2].update(x, y)
    assert added(sums).figures()["r2"] == pytest.approx(sk.r2_score(targets, outputs), rel=1e-6)
    if abs(offset) > 1e8:  # which squares of the numbers themselves do not show
        plain = RegressionSums(2, "cpu")
        plain.update(outputs, targets)
        assert plain.figures()["r2"] != pytest.approx(sk.r2_score(targets, outputs), rel=1e-2)


def test_numbers_are_written_with_all_the_digits_they_have(tmp_path):
    random = np.random.RandomState(0)
    prices = [str(random.randint(15_000, 500_001)) for _ in range(60)]
    years = [f"{2_000_000_000_000 + random.rand():.2f}" for _ in range(60)]
    for name, targets in {"prices": prices, "years": years}.items():
        table(tmp_path / f"{name}.csv", ["a", "y"], [[random.randn(), target] for target in targets])
        words = ["data=csv", f"data.path={name}.csv", "data.target=y", "loss=mse", "epochs=1", "threads=1"]
        train([*words, "optimizer.lr=0.001", f"hydra.run.dir={name}"], tmp_path, name=f"io{name}").ok()
        arguments = [f"run_dir={name}", f"input={name}.csv", f"output={name}_out.csv"]
        command("predict", arguments, tmp_path, name=f"p{name}").ok()
        with (tmp_path / f"{name}_out.csv").open() as file:
            found = list(csv.DictReader(file))
        assert [float(row["target"]) for row in found] == [float(target) for target in targets], name
        if name == "prices":
            assert [row["target"] for row in found] == targets
        assert len({row["predicted"] for row in found}) > 30


# Shapes


@pytest.mark.parametrize(
    ("task", "k", "outputs", "words"),
    [
        (
            "classification",
            3,
            torch.zeros(4, 1),
            r"gives \[4, 1\] for 4 samples; the task classification needs \[4, 3\]",
        ),
        ("classification", 3, torch.zeros(4), r"gives \[4\]"),
        ("classification", 3, torch.zeros(4, 1000), r"gives \[4, 1000\]"),
        (
            "classification",
            2,
            torch.zeros(4, 3),
            r"\[4, 2\], a score for each class; or \[4, 1\], a logit for the second",
        ),
        ("classification", 3, torch.zeros(3, 4), r"gives \[3, 4\]"),
        ("classification", 3, torch.zeros(4, 3, 8, 8), r"gives \[4, 3, 8, 8\]"),
        ("classification", 3, {"logits": torch.zeros(4, 3)}, "gives a dict of logits for 4 samples, not one tensor"),
        ("classification", 3, (torch.zeros(4, 3), torch.zeros(4, 3)), "gives a tuple for 4 samples, not one tensor"),
        ("multilabel", 3, torch.zeros(4), r"gives \[4\].*a logit for each label"),
        ("regression", 3, torch.zeros(4, 1), r"gives \[4, 1\].*the numbers to predict"),
        ("regression", 1, torch.zeros(()), r"gives \[\]"),
        ("language", 9, torch.zeros(4, 9), r"gives \[4, 9\].*\[4, tokens, 9\]"),
    ],
)
def test_outputs_that_are_not_what_the_task_needs_are_refused(task, k, outputs, words):
    with pytest.raises(ConfigError, match=f"model: .*{words}"):
        Outputs(task, k).fitted(outputs, 4)


def test_targets_that_are_no_class_are_told_when_they_come():
    sums = ClassificationSums(3, "cpu")
    sums.update(torch.zeros(4, 3), torch.tensor([0, -100, 2, 7]))
    with pytest.raises(BrokenFile, match=r"data: 2 targets .* none of the 3 classes, 0\.\.2"):
        sums.figures()
    loss = PerSample(nn.CrossEntropyLoss(), "classification")
    with pytest.raises(BrokenFile, match=r"data: a target is 7, which is none of the 3 classes, 0\.\.2"):
        loss(torch.zeros(2, 3), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="batch_size"):  # any other error stays what it is
        loss(torch.zeros(2, 3), torch.tensor([0, 1, 2]))


def test_a_module_of_its_own_takes_targets_of_any_type():
    for kind in (torch.uint8, torch.int32, torch.bool):
        targets = torch.tensor([0, 1, 1]).to(kind)
        values, _ = PerSample(nn.CrossEntropyLoss(), "classification")(torch.eye(3)[:, :2], targets)
        torch.testing.assert_close(values, F.cross_entropy(torch.eye(3)[:, :2], targets.long(), reduction="none"))
        values, _ = PerSample(nn.MSELoss(), "regression")(torch.ones(3, 1), targets[:, None])
        torch.testing.assert_close(values, (1 - targets.float()).square())
    assert PerSample(nn.BCEWithLogitsLoss())(torch.zeros(2), torch.tensor([0, 1]))[0].shape == (2,)
