"""A language: its samples, its model, its loss and its figures, beside plain PyTorch and the bytes of the file."""

import gzip
import importlib
import json
import os
import threading
import time
import zipfile
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


@pytest.mark.parametrize("package", ["gzip", "bz2", "lzma", "zipfile"])
def test_a_packed_text_is_the_text_in_it(package, tmp_path):
    """It was trained on as bytes of the packing, in silence, and then refused."""
    content, cache = book(tmp_path / "book").read_bytes() + b"\xff no UTF-8", str(tmp_path / "cache")
    (tmp_path / "book").write_bytes(content)
    if package == "zipfile":
        with zipfile.ZipFile(tmp_path / "book.txt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("book", content)
    else:
        (tmp_path / "book.txt").write_bytes(importlib.import_module(package).compress(content))
    plain, packed = (load(tmp_path / name, block=16, cache=cache) for name in ("book", "book.txt"))
    for name, split in plain.splits().items():
        assert torch.equal(split.inputs, packed.splits()[name].inputs), name
        assert torch.equal(split.targets, packed.splits()[name].targets), name
    assert packed.notes == [] and whole_of(packed) == list(content[: len(whole_of(packed))])


def whole_of(data):
    """The tokens of all splits, one after the other."""
    return torch.cat([split.inputs.flatten() for split in data.splits().values()]).tolist()


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
    load(tmp_path / "book", **settings | {"tokenizer": str(tmp_path)})  # a directory with a tokenizer.json
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
        told = {"truncation": "cut each text after 8 tokens", "padding": "fill up each text", "dropout": "dropout 0.5"}
        assert len(data.notes) == (name == "state.json") and all(told[state] in note for note in data.notes)
        whole = torch.cat([part.inputs.flatten() for part in (data.train, data.validation, data.test)]).tolist()
        assert whole == expected[: len(whole)] and len(whole) == (len(expected) - 1) // 10 * 10
    assert (
        len(list((tmp_path / "cache").glob("*.uint16"))) == len(list((tmp_path / "cache").glob("*-plain.uint16"))) + 1
    )


def words_of(tmp_path, *more):
    """A tokenizer of words, with the tokens `more` after them."""
    tokenizers = pytest.importorskip("tokenizers")
    names = [f"w{i}" for i in range(50)]
    vocabulary = {word: i for i, word in enumerate(["?", *names, *more])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def written(tmp_path, kind):
    """Documents of 30 words each, in a way that they may lie on the disk, and the numbers of their words."""
    numbers = np.random.RandomState(1).randint(50, size=(12, 30))
    texts = [" ".join(f"w{i}" for i in row) + "\n" for row in numbers]
    if kind == "rows":
        rows = "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts))
        (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
        return str(tmp_path / "rows.jsonl.gz"), "body", numbers + 1
    names = []
    for i, one in enumerate(texts):
        names.append(tmp_path / "texts" / f"{i % 3}" / f"{i:02d}.txt")
        names[-1].parent.mkdir(parents=True, exist_ok=True)
        names[-1].write_bytes(gzip.compress(one.encode()) if i % 4 == 0 else b"\xef\xbb\xbf" + one.encode())
    (tmp_path / "texts/.hidden").write_bytes(b"\0")
    (tmp_path / "texts/empty.txt").touch()
    if kind == "list":
        return [str(name) for name in reversed(names)], None, numbers[::-1] + 1
    return str(tmp_path / "texts"), None, numbers[np.argsort(np.arange(12) % 3, kind="stable")] + 1


@pytest.mark.parametrize("kind", ["directory", "list", "rows"])
@pytest.mark.parametrize(
    ("more", "end", "beside", "expected"),
    [
        (("<eos>", "<|endoftext|>"), "auto", None, 52),
        (("<eos>", "<|endoftext|>"), "auto", {"eos_token": {"content": "<eos>"}}, 51),
        (("<eos>", "</doc>"), "</doc>", None, 52),
        (("<eos>",), None, None, None),
        (("w99",), "auto", {"eos_token": None}, None),
    ],
)
def test_documents_are_parted_by_the_end_of_text(kind, more, end, beside, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "ROWS_AT_ONCE", 5)
    path, field, numbers = written(tmp_path, kind)
    if beside is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(beside))
    settings = {"tokenizer": words_of(tmp_path, *more), "cache": str(tmp_path / "cache"), "field": field}
    data = build("data", option("data", "text", path=path, block=5, end_of_text=end) | settings)
    ends = [] if expected is None else [expected]
    stream = sum(([*row, *ends] for row in numbers.tolist()), [])
    stream = stream[:-1] if ends else stream  # between two documents, not after the last
    found = whole_of(data)
    assert found == stream[: len(found)] and len(found) == (len(stream) - 1) // 5 * 5
    words = "parted by the token" if ends else "nothing parts the documents"
    assert any(words in note for note in data.notes), data.notes
    assert any("12 files" in note for note in data.notes) == (kind != "rows")


@pytest.mark.parametrize("kind", ["directory", "list", "rows"])
def test_bytes_of_documents_follow_each_other(kind, tmp_path):
    path, field, numbers = written(tmp_path, kind)
    settings = {"field": field, "cache": str(tmp_path / "cache")}
    data = build("data", option("data", "text", path=path, block=8) | settings)
    content = "".join(" ".join(f"w{i - 1}" for i in row) + "\n" for row in numbers.tolist()).encode()
    assert whole_of(data) == list(content)[: (len(content) - 1) // 8 * 8]
    assert any("bytes have no token" in note for note in data.notes)
    with pytest.raises(ConfigError, match=r"data\.end_of_text: bytes have no token '</s>'"):
        build("data", option("data", "text", path=path, block=8, end_of_text="</s>") | settings)


def test_another_field_end_or_content_is_another_stream(tmp_path):
    rows = [{"a": f"w{i} w1 w2", "b": f"w{i} w3 w4"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"tokenizer": words_of(tmp_path, "</s>", "<eos>"), "cache": str(tmp_path / "cache"), "block": 3}
    streams = [
        whole_of(load(tmp_path / "rows.jsonl", field=field, end_of_text=end, **settings))
        for field, end in [("a", "auto"), ("b", "auto"), ("a", "<eos>"), ("a", None), ("a", "auto")]
    ]
    assert streams[0] == streams[4] and len({tuple(one) for one in streams}) == 4
    data = load(tmp_path / "rows.jsonl", **settings)
    assert any("rows.jsonl is read as it is, JSON and all; data.field=text" in note for note in data.notes)
    with pytest.raises(ConfigError, match=r"data\.end_of_text: .*tokenizer\.json has no token '<none>'"):
        load(tmp_path / "rows.jsonl", field="a", end_of_text="<none>", **settings)
    with pytest.raises(ConfigError, match=r"data\.end_of_text: 7 is no token"):
        load(tmp_path / "rows.jsonl", field="a", end_of_text=7, **settings)


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
