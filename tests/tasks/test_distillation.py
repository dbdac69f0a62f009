"""task=distillation against a plain loop, with a teacher from a run directory."""

import pytest
import torch
from made_tasks import small
from processes import first_weights, rows, train
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream

RUN = [
    "data._target_=made_tasks.small", "optimizer=sgd", "scheduler=constant", "batch.global_size=12", "epochs=2",
    "log_every=1", "eval_every=3", "wandb.mode=disabled", "seed=3", "threads=1",
]  # fmt: skip
TEACHER = [*RUN, "model=mlp", "model.hidden=[9]", "hydra.run.dir=teacher", "optimizer.lr=0.5"]
STUDENT = [
    *RUN, "model=linear", "hydra.run.dir=run", "task=distillation", "task.teacher.run_dir=teacher", "task.share=0.6",
    "task.temperature=3", "loss=cross_entropy", "loss.weight=[1,2,3,4]",
]  # fmt: skip


def saved(directory, step):
    return load_file(directory / f"checkpoints/step_{step:08d}/model.safetensors")


@pytest.mark.parametrize(
    ("world", "words"),
    [(1, []), (2, []), (3, ["batch.max_per_device=2"]), (2, ["strategy=fsdp"]), (2, ["exact_across_devices=true"])],
)
def test_losses_and_weights_are_those_of_a_plain_loop(world, words, tmp_path):
    train(TEACHER, tmp_path, name="io0").ok()
    train([*STUDENT, *words, "optimizer.lr=0.3", "max_steps=6"], tmp_path, world, name="io2").ok()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    best = (tmp_path / "teacher/checkpoints/best").resolve()
    weights = load_file(best / "model.safetensors")
    teacher.load_state_dict({name.removeprefix("layers."): tensor.double() for name, tensor in weights.items()})
    begun = first_weights([*STUDENT, "task.teacher.run_dir=../teacher"], tmp_path)
    weight, bias = (tensor.double().requires_grad_() for tensor in sorted(begun.values(), key=lambda t: -t.dim()))
    optimizer = torch.optim.SGD([weight, bias], lr=0.3, momentum=0.9)
    data, expected = small(), []
    stream = Stream(data.train, plan_batch(37, 12, 1, None), 3, 0, torch.device("cpu"), 0)
    classes = torch.tensor([1.0, 2, 3, 4]).double()
    for step in range(6):
        index = torch.as_tensor(stream.samples(step).astype("int64"))
        x, y = data.train.inputs[index].double(), data.train.targets[index]
        scores, wanted = x @ weight.T + bias, (teacher(x).detach() / 3).softmax(1)
        hard = F.cross_entropy(scores, y, classes)  # divides by the weights of the classes
        each = 9 * (wanted * (wanted.log() - (scores / 3).log_softmax(1))).sum(1)
        soft = (each * classes[y]).sum() / classes[y].sum()
        optimizer.zero_grad()
        loss = 0.4 * hard + 0.6 * soft
        loss.backward()
        optimizer.step()
        expected.append([loss.item(), hard.item(), soft.item()])
    record = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    for row, numbers in zip(record, expected, strict=True):
        assert [row[f"train/{name}"] for name in ("loss", "hard", "soft")] == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    last = sorted(saved(tmp_path / "run", 6).values(), key=lambda t: -t.dim())
    for tensor, plain in zip(last, (weight, bias), strict=True):
        torch.testing.assert_close(tensor.double(), plain.detach(), rtol=1e-4, atol=1e-6)
    assert {"eval/hard", "eval/soft", "eval/accuracy"} <= rows(tmp_path / "run")[-1].keys()


@pytest.mark.soak
def test_mixed_samples_may_be_cut(tmp_path):
    """Their targets are no tensor: a loss of one sample at a time is the loss of that sample all the same."""
    train(TEACHER, tmp_path, name="io0").ok()
    words = [*STUDENT, "mixup.alpha=0.4", "max_steps=4"]
    for name, cut in {"whole": [], "cut": ["batch.max_per_device=5"]}.items():
        train([*words, *cut, f"hydra.run.dir={name}"], tmp_path, name=f"io{name}").ok()
    whole, cut = (rows(tmp_path / name) for name in ("whole", "cut"))
    assert [row == pytest.approx(other, rel=1e-4) for row, other in zip(whole, cut, strict=True)] == [True] * len(whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.teacher.run_dir=nowhere"], "error: task: run_dir=nowhere: no run is there"),
        (["task.temperature=0"], "task.temperature is 0: must be above 0"),
        (["task.share=1.5"], "task.share is 1.5: must lie in 0..1"),
        (
            ["data=diabetes", "loss=auto"],
            "needs the scores of classes, and the data is a regression task",
        ),
        (["data=digits", "loss=auto"], "task.teacher: fails on the inputs of this run"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words, message, tmp_path):
    train(TEACHER, tmp_path, name="io0").ok()
    kept = [word for word in STUDENT if not (words[0].startswith("data=") and word.startswith(("data", "loss")))]
    done = train([*kept, *words], tmp_path).wait()
    assert done.status == [2] and message in done.err() and "Traceback" not in done.err(), done.err()
