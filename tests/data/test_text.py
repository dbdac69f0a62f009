"""A language: its samples, its model, its loss and its figures, beside plain PyTorch and the bytes of the file."""

import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_loop import newest, same_bits
from omegaconf import OmegaConf
from processes import rows, summary, train
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream, in_order
from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data, TensorSplit, text
from launcher.losses.focal import FocalLoss
from launcher.losses.loss import PerSample, build_loss
from launcher.metrics.sums import LanguageSums
from launcher.models.transformer import Transformer, rotate, rotations

pytestmark = pytest.mark.versions

CONF = Path(__file__).parents[2] / "conf"
CPU = torch.device("cpu")


def load(path, **changes) -> Data:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "text.yaml")) | {"path": path and str(path)}
    return build("data", settings | changes)


def book(path, length=5000, seed=0):
    """A text in which much can be learnt: words of a small vocabulary, in lines."""
    words = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "saw", "another", "naïve", "dog"]
    drawn = np.random.RandomState(seed).randint(len(words), size=length)
    written = "".join(words[i] + (".\n" if n % 9 == 8 else " ") for n, i in enumerate(drawn))
    path.write_text(written, encoding="utf-8")
    return path


# The samples


def test_samples_are_the_bytes_of_the_file_in_order(tmp_path):
    content = np.random.RandomState(0).bytes(1003)
    (tmp_path / "book").write_bytes(content)
    data = load(tmp_path / "book", block=20, validation=0.2, test=0.1)
    assert (data.task, data.input_shape, data.num_outputs, data.tokens) == ("language", (20,), 256, 20)
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 9, 5]  # of (1003 - 1) // 20 = 50
    at = 0
    for part in (data.train, data.validation, data.test):
        seen = list(in_order(part, 0, 1, 7, CPU, 0))
        for inputs, targets in ((i, t) for batch in seen for i, t in zip(*batch, strict=True)):
            assert inputs.dtype == torch.int64
            assert bytes(inputs.tolist()) == content[at : at + 20]
            assert bytes(targets.tolist()) == content[at + 1 : at + 21]
            at += 20
    assert at == 1000
    plan = plan_batch(36, 8, 1, 3)
    stream = Stream(data.train, plan, 0, 0, CPU, 0)
    for batch in stream.batches(2, 9):
        inputs, targets = (torch.cat([getattr(m, name) for m in batch.micros]) for name in ("inputs", "targets"))
        for number, x, y in zip(stream.samples(batch.step).tolist(), inputs, targets, strict=True):
            assert bytes(x.tolist()) == content[20 * number :][:20]
            assert bytes(y.tolist()) == content[20 * number + 1 :][:20]


def memory() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    load(book(tmp_path / "small"), block=16)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 30)  # sparse: zeros that take no place on the disk
    before, started = memory(), time.perf_counter()
    data = load(tmp_path / "large", block=256)
    for batch in Stream(data.train, plan_batch(len(data.train), 32, 1, None), 0, 0, CPU, 0).batches(1000, 1020):
        assert batch.micros[0].inputs.shape == (32, 256) and not batch.micros[0].inputs.any()
    assert len(data.train) > 15_000_000
    assert time.perf_counter() - started < 3
    assert memory() - before < 200 << 20


@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        (None, {}, ["data.path", "None", "book.txt"]),
        (False, {}, ["data.path", "cannot read", "No such file"]),
        (b"", {"block": 8}, ["data.path", "0 tokens", "25"]),
        (b"x" * 24, {"block": 8}, ["data.path", "24 tokens", "25"]),
        (b"x" * 99, {"block": 0}, ["data.block", "0"]),
        (b"x" * 99, {"block": "8"}, ["data.block", "'8'"]),
        (b"x" * 99, {"block": 8, "test": 0}, ["data.test", "(0, 1)"]),
        (b"x" * 99, {"block": 8, "validation": 1.5}, ["data.validation", "(0, 1)"]),
        (b"x" * 99, {"block": 8, "tokenizer": "nowhere.json"}, ["data.tokenizer", "nowhere.json", "No such file"]),
    ],
)
def test_wrong_input_is_named(content, changes, words, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "book").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(None if content is None else tmp_path / "book", **changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_shortest_file_gives_one_sample_each(tmp_path):
    (tmp_path / "book").write_bytes(bytes(range(25)))
    data = load(tmp_path / "book", block=8)
    assert [part.inputs.tolist() for part in (data.train, data.validation, data.test)] == [
        [list(range(at, at + 8))] for at in (0, 8, 16)
    ]
    assert data.test.targets.tolist() == [list(range(17, 25))]


# Tokenizers


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer of words, in a file."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["?"], show_progress=False)
    trained.train_from_iterator([book(tmp_path / "book").read_text(encoding="utf-8")], trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    return trained


def test_tokens_are_those_of_the_tokenizer_and_are_kept(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 1000)
    monkeypatch.setattr(text, "AT_ONCE", 3)
    book(tmp_path / "book")
    expected = tokenizer.encode((tmp_path / "book").read_text(encoding="utf-8")).ids
    settings = {"block": 10, "tokenizer": str(tmp_path / "tokenizer.json"), "cache": str(tmp_path / "cache")}
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(tmp_path / "book", **settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for data in found:
        assert data.num_outputs == tokenizer.get_vocab_size() <= 60
        parts = [part.prepare(part.inputs).flatten() for part in (data.train, data.validation, data.test)]
        whole = torch.cat(parts).tolist()
        assert whole == expected[: len(whole)] and len(whole) == (len(expected) - 1) // 10 * 10
    (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")
    assert kept.suffix == ".uint16" and kept.stat().st_size == 2 * len(expected)
    made = kept.stat().st_mtime_ns
    load(tmp_path / "book", **settings)
    assert kept.stat().st_mtime_ns == made
    book(tmp_path / "book", seed=1)
    load(tmp_path / "book", **settings)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]) == 2


@pytest.mark.parametrize("state", ["truncation", "padding", "dropout"])
def test_what_a_tokenizer_says_of_single_sentences_is_undone(state, tokenizer, tmp_path):
    """As those of sentence-transformers come: of 100,167 tokens 7 samples of 32 were left."""
    expected = tokenizer.encode((tmp_path / "book").read_text(encoding="utf-8")).ids
    settings = {"block": 10, "cache": str(tmp_path / "cache")}
    if state == "truncation":
        tokenizer.enable_truncation(8)
    elif state == "padding":
        tokenizer.enable_padding(length=10 * len(expected), pad_token="?")
    else:
        tokenizer.model.dropout = 0.5
    tokenizer.save(str(tmp_path / "state.json"))
    for name in ("state.json", "tokenizer.json"):  # each has a cache of its own: an older version has written it
        data = load(tmp_path / "book", tokenizer=str(tmp_path / name), **settings)
        whole = torch.cat([part.inputs.flatten() for part in (data.train, data.validation, data.test)]).tolist()
        assert whole == expected[: len(whole)] and len(whole) == (len(expected) - 1) // 10 * 10
    assert (
        len(list((tmp_path / "cache").glob("*.uint16"))) == len(list((tmp_path / "cache").glob("*-plain.uint16"))) + 1
    )


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    numbers = np.random.RandomState(0).randint(70_000, size=400)
    (tmp_path / "book").write_text(" ".join(f"w{i}" for i in numbers))
    data = load(tmp_path / "book", block=3, tokenizer=str(tmp_path / "tokenizer.json"), cache=str(tmp_path / "cache"))
    assert data.num_outputs == 70_000
    plan = plan_batch(len(data.train), 8, 1, None)
    stream = Stream(data.train, plan, 0, 0, CPU, 0)
    (batch,) = stream.batches(3, 4)
    for number, x, y in zip(stream.samples(3), batch.micros[0].inputs, batch.micros[0].targets, strict=True):
        assert x.tolist() == numbers[3 * number :][:3].tolist() and y.tolist() == numbers[3 * number + 1 :][:3].tolist()


def test_what_a_tokenizer_cannot_do_is_told(tokenizer, tmp_path):
    good, cache = str(tmp_path / "tokenizer.json"), str(tmp_path / "cache")
    (tmp_path / "latin").write_bytes("naïve\n".encode("latin-1") * 500)
    with pytest.raises(ConfigError, match=r"data\.path: .*latin is no text in UTF-8 \(byte 2:.*data\.tokenizer"):
        load(tmp_path / "latin", tokenizer=good, cache=cache)
    with pytest.raises(ConfigError, match=r"data\.tokenizer: .*book is no tokenizer\.json"):
        load(tmp_path / "book", tokenizer=str(tmp_path / "book"), cache=cache)
    with pytest.raises(ConfigError, match=r"data\.cache: .*/book"):
        load(tmp_path / "book", tokenizer=good, cache=str(tmp_path / "book"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


# Loss and figures


def language(v=11) -> Data:
    part = TensorSplit(torch.zeros(4, 6, dtype=torch.uint8), torch.zeros(4, 6, dtype=torch.uint8))
    return Data("own", "language", (6,), v, part, part, part)


def scored(n=9, t=6, v=11):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, t, v, generator=generator), torch.randint(v, (n, t), generator=generator)


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
def test_the_mean_over_all_tokens_is_that_of_torch_and_so_is_its_gradient(loss, plain):
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
            {"_target_": "launcher.losses.binary_cross_entropy.BinaryCrossEntropy"},
            ["BinaryCrossEntropy", "language", "cross_entropy"],
        ),
    ],
)
def test_losses_that_mean_nothing_for_a_language_are_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        build_loss(settings, language())
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ConfigError, match="no classes"):
        _ = language().class_counts


def test_figures_are_those_of_torch_however_the_tokens_are_cut():
    outputs, targets = scored(n=20)
    whole = LanguageSums(CPU)
    for part in zip(outputs.split([7, 1, 12]), targets.split([7, 1, 12]), strict=True):
        whole.update(*part)
    found = whole.figures()
    loss = F.cross_entropy(outputs.double().transpose(1, 2), targets)
    assert found["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((outputs.argmax(2) == targets).double().mean().item())
    sure = LanguageSums(CPU)
    sure.update(100 * F.one_hot(targets, 11).float(), targets)
    guess = LanguageSums(CPU)
    guess.update(torch.zeros(2, 6, 11), targets[:2])
    assert sure.figures() == {"accuracy": 1, "perplexity": 1} and guess.figures()["perplexity"] == pytest.approx(11)
    assert math.isnan(LanguageSums(CPU).figures()["perplexity"])


# The model


def make(**changes) -> Transformer:
    torch.manual_seed(0)
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "transformer.yaml"))
    small = {"width": 32, "layers": 2, "heads": 4}
    return build("model", settings | small | changes, num_classes=13, num_outputs=13, out_features=13, block=10)


def shaken(model: nn.Module) -> nn.Module:
    """Weights far from where they start, so that nothing is small by chance."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


VARIANTS = [
    {"positions": positions, "activation": activation, "tie_weights": tied}
    for positions, activation, tied in [
        ("learned", "gelu", True), ("learned", "swiglu", False), ("rotary", "gelu", False), ("rotary", "swiglu", True),
    ]
]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_torchs_own_encoder_layers_with_a_causal_mask(tied):
    model = shaken(make(tie_weights=tied))
    tokens = torch.randint(13, (5, 10))
    hidden = model.embedding.weight[tokens] + model.positions.weight
    mask = nn.Transformer.generate_square_subsequent_mask(10)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
        first, _, second = block.feed_forward
        ours = {
            "self_attn.in_proj_": block.attention.query_key_value, "self_attn.out_proj.": block.attention.output,
            "linear1.": first, "linear2.": second, "norm1.": block.norm1, "norm2.": block.norm2,
        }  # fmt: skip
        layer.load_state_dict({f"{k}{w}": getattr(m, w) for k, m in ours.items() for w in ("weight", "bias")})
        hidden = layer(hidden, src_mask=mask, is_causal=True)
    output = model.embedding.weight if tied else model.output.weight
    expected = F.layer_norm(hidden, (32,), model.norm.weight, model.norm.bias) @ output.T
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_output_knows_a_later_token_nor_another_sample(variant):
    model = shaken(make(**variant))
    tokens = torch.randint(13, (3, 10))
    with torch.no_grad():
        before = model(tokens)
        assert before.shape == (3, 10, 13)
        for at in range(10):
            changed = tokens.clone()
            changed[1, at] = (tokens[1, at] + 1) % 13
            differs = (model(changed) - before).abs().amax(2) > 1e-5
            assert not differs[[0, 2]].any() and not differs[1, :at].any() and differs[1, at:].all()
        torch.testing.assert_close(model(tokens[:, :6]), before[:, :6], rtol=1e-4, atol=1e-5)


def test_rotary_is_a_product_of_complex_numbers_and_sees_distances_alone():
    vectors = torch.randn(2, 3, 10, 8)
    cosine, sine = rotations(10, 8, CPU)
    turns = torch.polar(torch.ones(10, 4), torch.arange(10.0)[:, None] * 10000 ** (-torch.arange(4) / 4))
    expected = torch.complex(*vectors.chunk(2, dim=-1)) * turns
    torch.testing.assert_close(rotate(vectors, (cosine, sine)), torch.cat([expected.real, expected.imag], -1))
    query, key = (rotate(torch.randn(8).expand(10, 8), (cosine, sine)) for _ in range(2))
    scores = query @ key.T
    for distance in range(-9, 10):
        of_distance = scores.diagonal(distance)
        torch.testing.assert_close(of_distance, of_distance[:1].expand_as(of_distance), rtol=1e-4, atol=1e-5)


def test_swiglu_is_its_formula():
    layer = make(activation="swiglu").blocks[0].feed_forward
    inputs = torch.randn(4, 32)
    gate, up = layer.gate_up.weight.split(layer.down.in_features)
    expected = (F.silu(inputs @ gate.T) * (inputs @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(inputs), expected)
    assert layer.down.in_features == 88  # 2/3 * 4 * 32 = 85.3, up to a multiple of 8


def test_its_parameters_are_those_of_its_description():
    count = {name: sum(p.numel() for p in make(**changes).parameters()) for name, changes in {
        "tied": {}, "own output": {"tie_weights": False}, "rotary": {"positions": "rotary"}, "one more": {"layers": 3},
    }.items()}  # fmt: skip
    block = 12 * 32**2 + (3 + 1 + 4 + 1) * 32 + 2 * 2 * 32
    assert count["tied"] == 13 * 32 + 10 * 32 + 2 * block + 2 * 32
    assert count["own output"] == count["tied"] + 13 * 32 and count["rotary"] == count["tied"] - 10 * 32
    assert count["one more"] == count["tied"] + block
    assert not list(make(positions="rotary").buffers())


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_at_a_guess_and_learns_by_heart(variant):
    model = make(**variant)
    tokens = torch.randint(13, (8, 11))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        losses.append(F.cross_entropy(model(inputs).flatten(0, 1), targets))
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[0].item() == pytest.approx(math.log(13), abs=0.1) and losses[-1].item() < 0.7


def test_dropout_works_in_training_alone():
    model, tokens = make(dropout=0.5), torch.randint(13, (2, 10))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, r"model\.width: 30 is no multiple of model\.heads=4"),
        ({"width": 0}, r"model\.width: 0 "),
        ({"layers": 1.5}, r"model\.layers: 1\.5 "),
        ({"heads": -1}, r"model\.heads: -1 "),
        ({"mlp_ratio": 0}, r"model\.mlp_ratio: 0 "),
        ({"positions": "sine"}, r"model\.positions: 'sine' .*learned or rotary"),
        ({"positions": "rotary", "width": 12}, r"model\.positions: rotary .* 3 is odd"),
        ({"activation": "relu"}, r"model\.activation: 'relu' .*gelu or swiglu"),
        ({"dropout": 1}, r"model\.dropout: 1 "),
        ({"tie_weights": "yes"}, r"model\.tie_weights: 'yes' "),
    ],
)
def test_refuses_what_makes_no_model(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


# Whole runs

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
        (["data=text", "data.path=book"], ["MLP", "input_shape", "block"]),
        (["model=transformer"], ["Transformer", "block", "input_shape"]),
        (["data=text", "data.path=book", "model=cnn"], ["CNN", "input_shape"]),
        ([*RUN, "metrics=[Accuracy]"], ["Accuracy", "classification", "language"]),
        ([*RUN, "checkpoint.best=eval/macro_f1", "checkpoint.best_mode=max"], ["eval/macro_f1", "eval/perplexity"]),
        ([*RUN, "data.block=0"], ["data.block=0", "at least 1"]),
    ],
)
def test_parts_that_do_not_fit_each_other_are_told_before_anything_is_made(words, expected, tmp_path):
    book(tmp_path / "book")
    run = train(words, tmp_path).wait()
    assert run.status == [2] and run.err().startswith("error: ") and "Traceback" not in run.err()
    assert all(word in run.err() for word in expected), run.err()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "io"]
