"""Tasks of a model(inputs) and a loss(outputs, targets), where a sample has many outputs, or outputs have a name."""

import json

import pytest
import torch
from made_tasks import Pixels, scenes
from processes import command, first_weights, rows, train
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from torch import nn

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream
from launcher.tasks.supervised import tensor_of

WORDS = [
    "data._target_=made_tasks.scenes", "model._target_=made_tasks.Pixels", "optimizer=sgd", "optimizer.lr=0.5",
    "scheduler=constant", "batch.global_size=12", "epochs=2", "max_steps=6", "log_every=1", "eval_every=3",
    "wandb.mode=disabled", "seed=3", "hydra.run.dir=run", "threads=1",
]  # fmt: skip
CUTS = [(1, []), (2, []), (3, ["batch.max_per_device=2"]), (2, ["strategy=fsdp"]), (2, ["exact_across_devices=true"])]


@pytest.mark.parametrize(("world", "words"), CUTS)
def test_the_mean_is_over_the_pixels_of_the_global_batch_that_count(world, words, tmp_path):
    """Against a plain loop in float64, whose cross-entropy divides by the pixels of the whole batch."""
    train([*WORDS, *words], tmp_path, world).ok()
    record = rows(tmp_path / "run")
    model = Pixels(2, 3).double()
    model.load_state_dict({name: tensor.double() for name, tensor in first_weights(WORDS, tmp_path).items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    data, losses = scenes(), []
    stream = Stream(data.train, plan_batch(37, 12, 1, None), 3, 0, torch.device("cpu"), 0)
    for step in range(6):
        index = torch.as_tensor(stream.samples(step).astype("int64"))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data.train.inputs[index].double()), data.train.targets[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [row["train/loss"] for row in record if "train/loss" in row] == pytest.approx(losses, rel=1e-4)
    saved = load_file(tmp_path / "run/checkpoints/step_00000006/model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(saved[name].double(), tensor, rtol=1e-4, atol=1e-6)
    model.load_state_dict(saved)
    outputs, true = model(data.validation.inputs.double()), data.validation.targets
    iou = jaccard_score(true[true >= 0], outputs.argmax(1)[true >= 0], average=None)
    assert [record[-1][f"eval/iou_{name}"] for name in data.class_names] == pytest.approx(iou, abs=1e-6)
    assert record[-1]["eval/loss"] == pytest.approx(nn.functional.cross_entropy(outputs, true).item(), rel=1e-4)


def test_the_commands_measure_it_and_say_that_it_has_no_table(tmp_path):
    train(WORDS, tmp_path).ok()
    command("evaluate", ["run_dir=run", "part=validation", "checkpoint=last", "output=found.json"], tmp_path).ok()
    expected = {name[5:]: value for name, value in rows(tmp_path / "run")[-1].items() if name.startswith("eval/")}
    assert json.loads((tmp_path / "found.json").read_text())["metrics"] == pytest.approx(expected, rel=1e-6)
    done = command("predict", ["run_dir=run", "part=test", "output=p.csv"], tmp_path, name="io2").wait()
    assert done.status == [2] and "predictions of the task segmentation have no table" in done.err()
    command("export", ["run_dir=run", "format=safetensors", "output=exported"], tmp_path, name="io3").ok()


def test_scores_of_another_shape_are_refused(tmp_path):
    done = train([*WORDS, "model=linear", "model._target_=launcher.models.linear.Linear"], tmp_path).wait()
    assert done.status == [2] and "needs [3, 3, height, width], a score for each class at each pixel" in done.err()


class Answer:
    def __init__(self, logits):
        self.logits = logits


def test_logits_are_taken_from_what_has_them():
    scores = torch.ones(2, 3)
    assert all(tensor_of(given) is scores for given in (scores, {"logits": scores, "other": 1}, Answer(scores)))
    assert tensor_of({"scores": scores}) == {"scores": scores}
