"""An evaluation counts each sample once, however it is cut, and ends where it is asked to."""

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn
from trainers import make_accelerator, supervised

from launcher.core.errors import ConfigError
from launcher.data import Data, TensorSplit
from launcher.training.evaluation import EvaluationSettings, Evaluator, check_metrics

LOSS = {"_target_": "torch.nn.CrossEntropyLoss", "weight": [0.5, 1.0, 3.0]}


def made(**settings):
    """An evaluator of 23 samples, these samples, and a model."""
    torch.manual_seed(0)
    split = TensorSplit(torch.randn(23, 4), torch.arange(23) % 3)
    data = Data("made", "classification", (4,), 3, split, split, split)
    ranks, accelerator = make_accelerator()
    evaluator = Evaluator(supervised(data, LOSS), accelerator, ranks, EvaluationSettings(**settings))
    return evaluator, split, nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("shards", [None, 1, 4, 23])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_metrics_are_those_of_all_samples_at_once(size, shards):
    evaluator, split, model = made(batch_size=size, shards=shards)
    found = evaluator.evaluate(model, split)
    assert model.training, "left in its mode"
    outputs = model.eval()(split.inputs)
    loss = nn.functional.cross_entropy(outputs, split.targets, weight=torch.tensor(LOSS["weight"]))
    assert found.samples == 23 and found.metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert found.metrics["accuracy"] == accuracy_score(split.targets, outputs.argmax(1))


def test_it_ends_before_the_batch_at_which_it_is_interrupted():
    evaluator, split, model = made(batch_size=5)
    asked = []
    assert evaluator.evaluate(model, split, lambda: asked.append(0) or len(asked) == 3) is None
    assert len(asked) == 3


def test_a_metric_that_there_will_not_be_is_refused():
    evaluator, _, _ = made(batch_size=5)
    check_metrics(evaluator.task, [], {"checkpoint.best": "eval/macro_f1", "scheduler.metric": None})
    with pytest.raises(ConfigError, match=r"checkpoint\.best=eval/r2: the evaluation has no such metric\. It has: ev"):
        check_metrics(evaluator.task, [], {"checkpoint.best": "eval/r2"})
