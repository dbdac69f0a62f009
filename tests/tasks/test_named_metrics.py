"""Metrics by name of tasks beside the usual ones: the figures of torchmetrics itself, given the same outputs."""

import re

import pytest
import torch
import torchmetrics
from made_tasks import Guess, Pixels, scenes, small
from processes import rows, summary, train
from safetensors.torch import load_file
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.tasks.masked import MaskedReconstruction
from launcher.training.evaluation import check_metrics

RUN = [
    "optimizer=sgd", "scheduler=constant", "batch.global_size=12", "epochs=2", "log_every=1", "eval_every=3", "seed=3",
    "checkpoint.every=3", "checkpoint.keep=9", "trackers=[]", "threads=1", "hydra.run.dir=run",
]  # fmt: skip
OWN = [
    *RUN, "data._target_=made_tasks.small", "task._target_=made_tasks.Guess", "model=linear", "optimizer.lr=1.0",
    "metrics=[{name: Accuracy, task: multiclass, num_classes: 4, average: macro}, {_target_: made_metrics.Least}]",
    "checkpoint.best=eval/Accuracy", "checkpoint.best_mode=max",
]  # fmt: skip


def weights_of(directory, step):
    return load_file(directory / f"run/checkpoints/step_{step:08d}/model.safetensors")


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_task_of_ones_own_is_measured_by_what_it_measures(world, tmp_path):
    train(OWN, tmp_path, world).ok()
    measured = {row["step"]: row for row in rows(tmp_path / "run") if "eval/loss" in row}
    assert list(measured) == [3, 6, 8]
    data = small().validation
    for step, row in measured.items():
        bias, weight = sorted(weights_of(tmp_path, step).values(), key=torch.Tensor.dim)
        probabilities = F.linear(data.inputs, weight, bias).softmax(1)
        accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=4, average="macro")
        assert row["eval/Accuracy"] == pytest.approx(float(accuracy(probabilities, data.targets)))
        least = probabilities[torch.arange(12), data.targets].min()
        assert row["eval/Least"] == pytest.approx(float(least), rel=1e-5)
    best = max(measured.values(), key=lambda row: row["eval/Accuracy"])
    assert summary(tmp_path / "run")["best"]["eval/Accuracy"] == best["eval/Accuracy"]
    assert summary(tmp_path / "run")["best_step"] == best["step"]


@pytest.mark.soak
def test_pixels_that_count_are_measured_one_by_one(tmp_path):
    """On 2 ranks, beside torchmetrics' own way to leave out a class."""
    words = ["data._target_=made_tasks.scenes", "model._target_=made_tasks.Pixels", "metrics=[JaccardIndex,AUROC]"]
    train([*RUN, *words, "checkpoint.best=eval/JaccardIndex", "checkpoint.best_mode=max"], tmp_path, 2).ok()
    model, data = Pixels(2, 3), scenes().validation
    model.load_state_dict(weights_of(tmp_path, 8))
    found = rows(tmp_path / "run")[-1]
    for name in ("JaccardIndex", "AUROC"):
        metric = getattr(torchmetrics, name)(task="multiclass", num_classes=3, ignore_index=-100)
        assert found[f"eval/{name}"] == pytest.approx(
            float(metric(model(data.inputs).softmax(1), data.targets)), abs=1e-6
        )
    assert found["eval/JaccardIndex"] == pytest.approx(found["eval/mean_iou"], abs=1e-6)


@pytest.mark.soak
def test_a_student_is_measured_by_its_own_scores(tmp_path):
    words = [*RUN, "data._target_=made_tasks.small", "model=linear"]
    train([*words, "hydra.run.dir=teacher"], tmp_path).ok()
    words += ["task=distillation", "task.teacher.run_dir=teacher", "metrics=[AUROC]", "optimizer.lr=0.3"]
    train(words, tmp_path, name="io1").ok()
    bias, weight = sorted(weights_of(tmp_path, 8).values(), key=torch.Tensor.dim)
    data, metric = small().validation, torchmetrics.AUROC(task="multiclass", num_classes=4)
    expected = metric(F.linear(data.inputs, weight, bias).softmax(1), data.targets)
    assert rows(tmp_path / "run")[-1]["eval/AUROC"] == pytest.approx(float(expected), abs=1e-6)


ACCURACY = {"name": "Accuracy", "task": "multiclass", "num_classes": 4}


@pytest.mark.parametrize(
    ("metrics", "silent", "message"),
    [
        (["Accuracy"], False, "A task of your own has it told: [{name: Accuracy, task: ...}]"),
        ([ACCURACY], True, "the task Guess has no outputs that metrics could compare with the targets"),
        ([ACCURACY | {"num_classes": 3}], False, "metrics: Accuracy does not take what the task measures"),
        ([ACCURACY | {"average": "none"}], False, "metrics: Accuracy: its result is [4], not one number"),
        (
            [ACCURACY],
            False,
            "checkpoint.best=eval/AUROC: the evaluation has no such metric. It has: eval/loss, eval/Acc",
        ),
    ],
)
def test_what_a_task_of_ones_own_does_not_measure_is_one_sentence(metrics, silent, message):
    task, rows = Guess(silent), torch.eye(4)[:3]
    seen = task.measure(torch.nn.Identity(), rows, torch.arange(3))[1], torch.arange(3)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_metrics(task, metrics, {"checkpoint.best": "eval/AUROC"}, seen)
    check_metrics(Guess(), [ACCURACY], {"checkpoint.best": "eval/Accuracy"}, (rows, torch.arange(3)))
    with pytest.raises(ConfigError, match="the task MaskedReconstruction has no outputs that metrics could compare"):
        check_metrics(MaskedReconstruction(0.5, (4,)), ["AUROC"], {})
