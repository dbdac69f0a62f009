"""A language: its samples, its model, its loss and its figures, beside plain PyTorch and the bytes of the file."""

import importlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from options import option
from texts import CPU, book

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream, in_order
from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data, text

pytestmark = pytest.mark.versions


def load(path, **changes) -> Data:
    return build("data", option("data", "text", path=path and str(path)) | changes)


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


@pytest.mark.parametrize("package", ["gzip", "bz2", "lzma"])
def test_a_packed_text_is_refused(package, tmp_path):
    """It was trained on, as bytes, in silence."""
    content = book(tmp_path / "book").read_bytes()
    load(tmp_path / "book", block=16)
    (tmp_path / "book.txt").write_bytes(importlib.import_module(package).compress(content))
    with pytest.raises(ConfigError, match=r"data\.path: .*book\.txt is packed by .*; unpack it first"):
        load(tmp_path / "book.txt", block=16)


def test_the_shortest_file_gives_one_sample_each(tmp_path):
    (tmp_path / "book").write_bytes(bytes(range(25)))
    data = load(tmp_path / "book", block=8)
    assert [part.inputs.tolist() for part in (data.train, data.validation, data.test)] == [
        [list(range(at, at + 8))] for at in (0, 8, 16)
    ]
    assert data.test.targets.tolist() == [list(range(17, 25))]


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
