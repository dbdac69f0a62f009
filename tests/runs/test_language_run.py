"""Runs that learn a language: losses, records and what they leave."""

import json
import signal
import time

import numpy as np
import pytest
import torch
from kill_loop import newest, same_bits
from processes import rows, summary, train
from safetensors.torch import load_file
from texts import book, scored
from torch import nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.data import Data, TensorSplit
from launcher.losses.focal import FocalLoss
from launcher.losses.loss import build_loss
from launcher.losses.per_sample import PerSample
from launcher.models.transformer import Transformer

pytestmark = pytest.mark.versions


def language(v=11) -> Data:
    part = TensorSplit(torch.zeros(4, 6, dtype=torch.uint8), torch.zeros(4, 6, dtype=torch.uint8))
    return Data("own", "language", (6,), v, part, part, part)


class OwnMean(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.CrossEntropyLoss(ignore_index=3), nn.CrossEntropyLoss(ignore_index=3)),
        (nn.MultiMarginLoss(), nn.MultiMarginLoss()),
        (FocalLoss(2.0), lambda o, y: (-(1 - o.softmax(1)).pow(2) * o.log_softmax(1)).gather(1, y[:, None]).mean()),
    ],
)
def test_mean_and_gradient_over_all_tokens_are_those_of_torch(loss, plain):
    outputs, targets = scored()
    ours, theirs = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    language_loss = PerSample(loss, "language")
    values, weights = zip(
        *map(language_loss, ours.split([4, 3, 2]), targets.to(torch.uint8).split([4, 3, 2])), strict=True
    )
    assert [len(value) for value in values] == [4, 3, 2]
    divisor = 9 if weights[0] is None else torch.cat(weights).sum()
    mean = torch.cat(values).sum() / divisor
    expected = plain(theirs.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(mean, expected)
    mean.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_mean_of_ones_own_counts_by_samples():
    outputs, targets = scored()
    values, weights = PerSample(OwnMean(), "language")(outputs, targets)
    assert weights is None and values.shape == (9,)
    torch.testing.assert_close(values.mean(), F.cross_entropy(outputs.transpose(1, 2), targets))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"_target_": "torch.nn.CrossEntropyLoss", "weight": "balanced"}, ["loss.weight", "balanced", "null"]),
        ({"_target_": "torch.nn.CrossEntropyLoss", "weight": [1.0] * 11}, ["loss.weight", "null"]),
        ({"_target_": "launcher.losses.focal.FocalLoss", "gamma": 2, "alpha": "balanced"}, ["loss.alpha", "null"]),
        ({"_target_": "torch.nn.MSELoss"}, ["MSELoss", "language", "cross_entropy"]),
        (
            {"_target_": "torch.nn.BCEWithLogitsLoss"},
            ["BCEWithLogitsLoss", "language", "cross_entropy"],
        ),
    ],
)
def test_losses_that_mean_nothing_for_a_language_are_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        build_loss(settings, language())
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ConfigError, match="no classes"):
        _ = language().class_counts


RUN = [
    "data=text", "data.path=book", "data.block=16", "model=transformer", "model.width=16", "model.layers=2",
    "model.heads=2", "optimizer=adamw", "optimizer.lr=0.01", "batch.global_size=100", "batch.max_per_device=30",
    "epochs=3", "log_every=4", "eval_every=7", "checkpoint.every=5", "threads=1", "clip_grad_norm=1.0",
    "hydra.run.dir=run", "checkpoint.best=eval/perplexity",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same run on 1, 2 and 3 ranks."""
    found = {}
    for world in (1, 2, 3):
        found[world] = tmp_path_factory.mktemp(f"text{world}")
        book(found[world] / "book")
        train(RUN, found[world], world, pictures=True).ok()
    return found


def test_any_number_of_ranks_gives_the_same_record(finished):
    record = rows(finished[1] / "run")
    assert 1 < record[-1]["eval/perplexity"] < 16  # of 256 that a guess would have
    for world in (2, 3):
        for row, expected in zip(rows(finished[world] / "run"), record, strict=True):
            assert row == pytest.approx(expected, rel=2e-3, abs=1e-5)
        ours, theirs = (summary(finished[w] / "run")["final"] for w in (world, 1))
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_figures_of_the_test_part_are_those_of_plain_pytorch(world, finished):
    content = np.fromfile(finished[world] / "book", np.uint8)
    samples = (len(content) - 1) // 16
    first = samples - round(0.05 * samples)
    inputs, targets = (
        torch.from_numpy(content[16 * first + shift : 16 * samples + shift].reshape(-1, 16)).long() for shift in (0, 1)
    )
    model = Transformer(256, 16, 16, 2, 2, 4, "learned", "gelu", 0.0, True).eval()
    model.load_state_dict(load_file(newest(finished[world]) / "model.safetensors"))
    with torch.no_grad():
        outputs = model(inputs)
    loss = F.cross_entropy(outputs.double().transpose(1, 2), targets)
    accuracy = (outputs.argmax(2) == targets).double().mean()
    final = summary(finished[world] / "run")["final"]
    assert final["test/perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    assert final["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert final["test/accuracy"] == pytest.approx(accuracy.item(), rel=1e-6)
    assert json.loads((finished[world] / "run/evaluation.json").read_text())["samples"] == len(inputs)


def test_what_a_run_leaves_speaks_of_tokens_and_of_no_classes(finished):
    directory = finished[2] / "run"
    page, log = (directory / "report.html").read_text(), (finished[2] / "io/out.0").read_text()
    assert "perplexity" in page and "Confusion" not in page and "Classes" not in page
    assert "tokens/s" in log and "samples/s" not in log
    for row in [json.loads(line) for line in (directory / "timings.jsonl").read_text().splitlines()]:
        assert row["tokens_per_second"] == pytest.approx(16 * row["samples_per_second"])
    assert summary(directory)["tokens_per_second"] > 0
    assert (directory / "curves.png").stat().st_size > 10_000


@pytest.mark.soak
def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path):
    words = [*RUN, "model.dropout=0.1", "model.positions=rotary", "model.activation=swiglu", "ema_decay=0.9"]
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    for directory in (calm, stopped):
        directory.mkdir()
        book(directory / "book")
    train(words, calm, 2).ok()
    run = train(words, stopped, 2)
    while run.processes[0].exitcode is None:
        record = stopped / "run/metrics.jsonl"
        if record.exists() and record.read_bytes().count(b"\n") >= 2:
            run.signal(1, signal.SIGTERM)
            break
        time.sleep(0.002)
    run.ok()
    assert 0 < json.loads((stopped / "run/stopped.json").read_text())["step"] < rows(calm / "run")[-1]["step"]
    train(words, stopped, 2, name="io1").ok()
    same_bits(calm, stopped)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=text", "data.path=book"], ["MLP", "input_shape", "model=transformer"]),
        (["model=transformer"], ["Transformer", "block", "model=mlp"]),
        (["data=text", "data.path=book", "model=cnn"], ["CNN", "input_shape"]),
        ([*RUN, "metrics=[Accuracy]"], ["Accuracy", "classification", "language"]),
        ([*RUN, "checkpoint.best=eval/macro_f1", "checkpoint.best_mode=max"], ["eval/macro_f1", "eval/perplexity"]),
        ([*RUN, "data.block=0"], ["data.block=0", "at least 1"]),
    ],
)
def test_parts_that_do_not_fit_are_told_before_anything_is_made(words, expected, tmp_path):
    book(tmp_path / "book")
    run = train(words, tmp_path).wait()
    assert run.status == [2] and run.err().startswith("error: ") and "Traceback" not in run.err()
    assert all(word in run.err() for word in expected), run.err()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "io"]
