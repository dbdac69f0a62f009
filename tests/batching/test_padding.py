"""Samples of different lengths: batches beside torch's own, and runs beside a loop that sees one sample at a time."""

import pytest
import torch
from made_sequences import TOKENS, Tagger, load
from processes import command, first_weights, rows, train
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from launcher.batching.padding import Pad
from launcher.batching.plan import plan_batch
from launcher.batching.sampling import GroupedByLength
from launcher.batching.stream import Stream
from launcher.core.errors import BrokenFile

OF_TOKENS = [
    "data._target_=made_sequences.load", "model._target_=made_sequences.Tagger", "task=auto", "optimizer=sgd",
    "optimizer.lr=0.3", "scheduler=constant", "batch.global_size=12", "epochs=2", "log_every=1", "eval_every=3",
    "checkpoint.every=2", "num_workers=0", "wandb.mode=disabled", "seed=3", "hydra.run.dir=run", "threads=1",
]  # fmt: skip
TEXTS = [torch.arange(1, n) for n in (4, 2, 6)]


def test_a_batch_is_that_of_pad_sequence():
    samples = [({"input_ids": text, "number": i}, i) for i, text in enumerate(TEXTS)]
    inputs, targets = Pad({"input_ids": 9}, multiple=4)(samples)
    expected = pad_sequence([*TEXTS, torch.arange(8)], batch_first=True, padding_value=9)[:3]
    assert inputs["input_ids"].equal(expected) and targets.tolist() == [0, 1, 2] == inputs["number"].tolist()
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1] + [0] * 7, [1, 1, 1, 1, 1, 0, 0, 0]]


def test_targets_of_each_place_count_nowhere_behind_the_end():
    inputs, targets = Pad()([(text, text) for text in TEXTS])
    assert inputs.equal(pad_sequence(TEXTS, batch_first=True))
    assert targets.equal(pad_sequence(TEXTS, batch_first=True, padding_value=-100))
    own = Pad()([({"a": text, "attention_mask": text * 0}, 0) for text in TEXTS])[0]
    assert not own["attention_mask"].any() and list(own) == ["a", "attention_mask"]
    alone = Pad(mask="seen")([{"a": text} for text in TEXTS])
    assert list(alone) == ["a", "seen"] and alone["seen"].sum(1).tolist() == [3, 1, 5]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(torch.ones(2, 3), 0), (torch.ones(2, 4), 0)], "may differ in their first side alone"),
        ([({"a": torch.ones(2)}, 0), ({"b": torch.ones(2)}, 0)], "a sample has the keys b, and another a"),
    ],
)
def test_what_cannot_be_padded_is_one_sentence(samples, message):
    with pytest.raises(BrokenFile, match=message):
        Pad()(samples)


def plain_loop(weights, order):
    """SGD with momentum in float64, one sequence at a time and nothing filled up: losses and the last weights."""
    model = Tagger(TOKENS).double()
    model.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    data, means = load().train.dataset, []
    for numbers in order:
        total, count = 0.0, 0
        for inputs, targets in (data[i] for i in numbers):
            tokens = inputs["input_ids"][None]
            scores = model(tokens, torch.ones_like(tokens))[0]
            total = total + F.cross_entropy(scores, targets, reduction="sum", ignore_index=-100)
            count += int((targets != -100).sum())
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        means.append(float(total.detach() / count))
    return means, model


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (1, []),
        (2, ["num_workers=1"]),
        (3, ["sampling=group_by_length"]),
        (1, ["batch.max_per_device=5", "sampling=group_by_length"]),
        (2, ["exact_across_devices=true"]),
        (2, ["strategy=fsdp", "batch.max_per_device=2"]),
    ],
)
def test_the_mean_over_tokens_is_that_of_a_loop_without_padding(world, words, tmp_path):
    """However the batch is cut: tokens weigh the same, and what is filled up or ignored nothing."""
    train([*OF_TOKENS, *words, "max_steps=5"], tmp_path, world).ok()
    record = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    data, sampler = load(), None
    if "sampling=group_by_length" in words:
        sampler = GroupedByLength(data, 3, 12)
    stream = Stream(data.train, plan_batch(37, 12, 1, None), 3, 0, torch.device("cpu"), 0, sampler)
    means, model = plain_loop(first_weights(OF_TOKENS, tmp_path), [stream.samples(step) for step in range(5)])
    assert [row["train/loss"] for row in record] == pytest.approx(means, rel=1e-5)
    saved = load_file(tmp_path / "run/checkpoints/step_00000005/model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(saved[name].double(), tensor, rtol=1e-4, atol=1e-6)
    right = tokens = nats = 0.0
    model.requires_grad_(False)
    for inputs, targets in (data.validation.dataset[i] for i in range(11)):
        text = inputs["input_ids"][None]
        scores = model(text, torch.ones_like(text))[0]
        counted = targets != -100
        right += float((scores.argmax(1) == targets)[counted].sum())
        nats += float(F.cross_entropy(scores, targets, reduction="sum"))
        tokens += float(counted.sum())
    measured = rows(tmp_path / "run")[-1]
    assert measured["eval/accuracy"] == pytest.approx(right / tokens)
    assert measured["eval/loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert measured["eval/perplexity"] == pytest.approx(float(torch.tensor(nats / tokens).exp()), rel=1e-4)


def test_it_goes_on_bitwise(tmp_path):
    found = {}
    for name, stops in {"whole": [7], "parts": [3, 7]}.items():
        (tmp_path / name).mkdir()
        for stop in stops:
            words = [*OF_TOKENS, "sampling=group_by_length", "epochs=3", f"max_steps={stop}"]
            train(words, tmp_path / name, 2, name=f"io{stop}").ok()
        weights = load_file(tmp_path / name / "run/checkpoints/step_00000007/model.safetensors")
        found[name] = rows(tmp_path / name / "run"), {key: value.tolist() for key, value in weights.items()}
    assert found["whole"] == found["parts"]
    words = ["run_dir=run", "part=validation", "checkpoint=last", "output=found.json"]
    command("evaluate", words, tmp_path / "whole").ok()
