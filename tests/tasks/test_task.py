"""A task of a person's own: its update, record and resume against a plain loop, and what is refused."""

import json

import pytest
import torch
from made_tasks import Agree, Encoder, views
from processes import command, first_weights, rows, train
from safetensors.torch import load_file

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream

WORDS = [
    "data._target_=made_tasks.views", "model._target_=made_tasks.Encoder", "task._target_=made_tasks.Agree",
    "+task.share=0.3", "optimizer=sgd", "optimizer.lr=0.2", "scheduler=constant", "batch.global_size=12",
    "epochs=2", "log_every=1", "eval_every=3", "checkpoint.every=2", "num_workers=0", "wandb.mode=disabled", "seed=3",
    "hydra.run.dir=run", "threads=1",
]  # fmt: skip
OTHER = [word for word in WORDS if not word.lstrip("+").startswith("task")]


def refused(run, message):
    """The run ended with one sentence for its user, which holds this."""
    assert run.wait().status == [2] and message in run.err(), run.err()


def plain_loop(weights, steps, order):
    """SGD with momentum in float64 on whole batches: losses, their terms and the last weights."""
    model = Encoder(6, 4).double()
    model.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
    data, means = views().train.dataset, []
    for step in range(steps):
        samples = [data[i] for i in order[step]]
        batch = {name: torch.stack([s[name] for s in samples]).double() for name in samples[0]}
        left, right = model(batch["left"]), model(batch["right"])
        weight = batch["weight"]
        agreement = (left["out"] - right["out"]).square().mean(1) * weight
        size = left["hidden"].square().mean(1) * weight
        parts = [(agreement + 0.3 * size).sum(), agreement.sum(), size.sum()]
        optimizer.zero_grad()
        (parts[0] / weight.sum()).backward()
        optimizer.step()
        means.append([float(part / weight.sum()) for part in parts])
    return means, model.state_dict()


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (1, []),
        (2, []),
        (3, []),
        (1, ["batch.max_per_device=5"]),
        (2, ["batch.max_per_device=2"]),
        (2, ["exact_across_devices=true"]),
        (2, ["strategy=fsdp"]),
    ],
)
def test_the_mean_over_a_global_batch_is_that_of_a_plain_loop(world, words, tmp_path):
    """However the batch is cut: losses, each term and the weights, in float64 to rounding."""
    train([*WORDS, *words, "max_steps=6"], tmp_path, world).ok()
    record = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    weights = first_weights(WORDS, tmp_path)
    stream = Stream(views().train, plan_batch(37, 12, 1, None), 3, 0, torch.device("cpu"), 0)
    means, last = plain_loop(weights, 6, [stream.samples(step) for step in range(6)])
    for row, expected in zip(record, means, strict=True):
        found = [row[f"train/{name}"] for name in ("loss", "agreement", "size")]
        assert found == pytest.approx(expected, rel=1e-4)
    saved = load_file(tmp_path / "run/checkpoints/step_00000006/model.safetensors")
    for name, tensor in last.items():
        torch.testing.assert_close(saved[name].double(), tensor, rtol=1e-4, atol=1e-6)
    measured = rows(tmp_path / "run")[-1]
    model = Encoder(6, 4)
    model.load_state_dict(saved)
    data = views().validation.dataset
    batch = {name: torch.stack([data[i][name] for i in range(11)]) for name in data[0]}
    values, weight, terms = Agree(0.3).losses(model, batch, None)
    assert measured["eval/loss"] == pytest.approx(float(values.sum() / weight.sum()), rel=1e-5)
    assert measured["eval/size"] == pytest.approx(float(terms["size"].sum() / weight.sum()), rel=1e-5)


@pytest.mark.parametrize(("world", "words"), [(1, ["mixed_precision=bf16"]), (2, ["strategy=fsdp"]), (2, [])])
def test_it_goes_on_bitwise(world, words, tmp_path):
    found = {}
    for name, stops in {"whole": [7], "parts": [3, 7]}.items():
        (tmp_path / name).mkdir()
        for stop in stops:
            train([*WORDS, *words, "ema_decay=0.8", f"max_steps={stop}"], tmp_path / name, world, name=f"io{stop}").ok()
        weights = load_file(tmp_path / name / "run/checkpoints/step_00000007/model.safetensors")
        found[name] = rows(tmp_path / name / "run"), {key: value.tolist() for key, value in weights.items()}
    assert found["whole"] == found["parts"]


def test_the_commands_measure_it_and_say_what_has_no_table(tmp_path):
    train([*WORDS, "max_steps=6"], tmp_path).ok()
    command("evaluate", ["run_dir=run", "part=validation", "checkpoint=last", "output=found.json"], tmp_path).ok()
    expected = {name[5:]: value for name, value in rows(tmp_path / "run")[-1].items() if name.startswith("eval/")}
    assert json.loads((tmp_path / "found.json").read_text())["metrics"] == pytest.approx(expected, rel=1e-6)
    words = ["run_dir=run", "part=test", "output=p.csv"]
    refused(command("predict", words, tmp_path, name="io2"), "task made_tasks.Agree have no table")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+task.share=1", "task._target_=made_tasks.Contrast"], "made_tasks.Contrast refuses (share=1)"),
        (["task._target_=made_tasks.Missing"], "task._target_: cannot import 'made_tasks.Missing'"),
        (["task._target_=made_tasks.Silent"], "task: Silent has no method losses("),
        (["task._target_=torch.nn.ReLU"], "torch.nn.ReLU gives a ReLU, not a launcher.tasks.task.Task"),
        (["loss=mse"], "the task made_tasks.Agree has a loss of its own. Leave the group loss out"),
        (["loss.weight=balanced"], "loss.weight is 'balanced': the task made_tasks.Agree has a loss of its own"),
        (["mixup.alpha=0.2"], "mixup.alpha: the task Agree takes no mixed classes"),
        (["metrics=[AUROC]"], "metrics: the task Agree has no outputs that metrics could compare"),
        (["wandb.tables=3"], "by the task Agree, have no table"),
        (["checkpoint.best=eval/other_loss"], "It has: eval/loss, eval/agreement, eval/size"),
        (["task=auto"], "its task, 'own', is none of classification"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words, message, tmp_path):
    kept = OTHER if any("task" in word.partition(".")[0] for word in words) else WORDS
    refused(train([*kept, *words], tmp_path), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mean", "task: Wrong: its values are [] float32 for 3 samples; give one number per sample, [3]"),
        ("terms", "its losses have the terms other, and the class names agreement, size"),
        ("tensor", "task: Wrong.losses gives a Tensor; return launcher.tasks.task.Losses(values)"),
        ("detached", "its losses have no gradient"),
        ("negative", "task: Wrong: its weights are negative for some samples"),
        ("called", "task: Wrong has a term 'loss', the name of the whole"),
        ("trained", "parameters of its own that are to be trained, such as head.weight"),
    ],
)
def test_losses_of_another_form_are_refused(kind, message, tmp_path):
    words = [*OTHER, "task._target_=made_tasks.Wrong", f"+task.kind={kind}"]
    refused(train(words, tmp_path), message)


def test_a_loss_that_looks_at_the_batch_is_not_cut(tmp_path):
    words = [*OTHER, "task._target_=made_tasks.Contrast", "max_steps=2"]
    train(words, tmp_path).ok()
    cut = [*words, "batch.max_per_device=4", "hydra.run.dir=cut"]
    refused(train(cut, tmp_path, name="io2"), "the loss of a sample depends on which others are in its batch")
