"""Columns of texts and of tokens, beside the tokenizer's own encoding, and in runs of several processes."""

import json

import numpy as np
import pytest
import torch
from datasets_on_disk import cache, datasets, load  # noqa: F401
from processes import rows, summary, train

from launcher.core.errors import ConfigError
from launcher.data.text_columns import BEGIN, FIRST_BYTE, Vocabulary

pytestmark = pytest.mark.versions
tokenizers = pytest.importorskip("tokenizers")
WORDS = ["the", "cat", "sat", "on", "mat", "and", "naïve", "dog"]


def texts(n=60, seed=0):
    random = np.random.RandomState(seed)
    return [" ".join(WORDS[i] for i in random.randint(len(WORDS), size=1 + k * 7 % 12)) for k in range(n)]


@pytest.fixture
def tokenizer(tmp_path):
    """One of words, which puts marks around a text as BERT's does."""
    known = {name: i for i, name in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS, "[PAD]"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.enable_padding(length=50)  # which would make each text as long
    (tmp_path / "bert").mkdir()
    made.save(str(tmp_path / "bert/tokenizer.json"))
    return tmp_path / "bert"


def saved(path, n=60):
    content = texts(n)
    rows = [{"text": text, "kind": "pet" if "cat" in text else "other"} for text in content]
    path.write_text("\n".join(map(json.dumps, rows)))
    return content


@pytest.mark.parametrize("most", [100, 6])
def test_texts_are_encoded_as_by_the_tokenizer(most, tokenizer, tmp_path):
    content = saved(tmp_path / "t.jsonl")
    words = {"input": "text", "target": "kind", "tokenizer": str(tokenizer), "max_tokens": most}
    data = load(tmp_path / "t.jsonl", cache=str(tmp_path / "kept"), **words)
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(most)
    expected = {tuple(theirs.encode(text).ids): "cat" in text for text in content}
    seen = 0
    for split in data.splits().values():
        for i in range(len(split)):
            inputs, target = split.dataset[i]
            ids = inputs["input_ids"].tolist()
            assert ids[0] == 1 and ids[-1] == 2 and len(ids) == split.lengths[i]
            if most == 100:
                assert expected[tuple(ids)] == (data.class_names[target] == "pet")
            assert tuple(ids) in expected
            seen += 1
    assert seen == 60 and (data.vocabulary, data.task) == (12, "classification")
    batch, _ = data.train.collate([data.train.dataset[i] for i in range(3)])
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 11).all(), "filled by [PAD]"
    assert batch["input_ids"].shape[1] % 8 == 0
    assert any("cut off" in note for note in data.notes) == (most == 6), data.notes
    kept = sorted((tmp_path / "kept").rglob("tokens.npy"))
    assert len(kept) == 3, "one for each split"
    for file in kept:
        np.save(file, np.load(file) * 0)
    again = load(tmp_path / "t.jsonl", cache=str(tmp_path / "kept"), **words)
    assert not again.train.dataset[0][0]["input_ids"].any(), "the second start reads it"


def test_bytes_where_there_is_no_tokenizer():
    found, cut = Vocabulary(None, 5, None).sequences(["ab", "", "naïve"], "here")
    assert cut == 1 and np.diff(found.offsets).tolist() == [3, 1, 5] and found.longest == 5
    text = (np.array(found.tokens[found.offsets[2] + 1 :]) - FIRST_BYTE).astype(np.uint8).tobytes()
    assert text == "naïve".encode()[:4] and (found.tokens[found.offsets[:-1]] == BEGIN).all()


def test_columns_of_tokens_with_a_mask_of_their_own(tmp_path):
    content = [[1 + (i * j) % 9 for j in range(2 + i % 5)] for i in range(40)]
    masks = [[1] * (len(one) - 1) + [0] for one in content]
    table = {"input_ids": content, "attention_mask": masks, "label": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / "t.parquet"))
    data = load(tmp_path / "t.parquet", input=["input_ids", "attention_mask"], target="label")
    inputs, _ = data.test.dataset[3]
    place = content.index(inputs["input_ids"].tolist())
    assert inputs["attention_mask"].tolist() == masks[place] and data.vocabulary == 10 and data.input_shape == (6,)
    batch, _ = data.test.collate([data.test.dataset[i] for i in range(4)])
    assert list(batch) == ["input_ids", "attention_mask"]
    alone = load(tmp_path / "t.parquet", input="input_ids", target="label")
    assert torch.equal(alone.test.dataset[3][0]["input_ids"], inputs["input_ids"])


def test_labels_and_numbers_of_a_text_are_not_padded(tmp_path):
    labels = [[i % 2, i // 2 % 2, 1] for i in range(40)]
    table = {
        "text": texts(40),
        "labels": labels,
        "a": [0.5 * i for i in range(40)],
        "b": [float(-i) for i in range(40)],
    }
    datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / "t.parquet"))
    rows = dict(zip(table["text"], zip(labels, table["a"], strict=True), strict=True))
    data = load(tmp_path / "t.parquet", input="text", target="labels")
    inputs, targets = data.test.collate([data.test.dataset[i] for i in range(5)])
    assert data.task == "multilabel" and targets.shape == (5, 3) == (len(inputs["input_ids"]), data.num_outputs)
    written = [bytes(row[row >= FIRST_BYTE].sub(FIRST_BYTE).tolist()).decode() for row in inputs["input_ids"]]
    assert targets.tolist() == [rows[text][0] for text in written]
    data = load(tmp_path / "t.parquet", input="text", target=["a", "b"])
    _, targets = data.test.collate([data.test.dataset[i] for i in range(5)])
    numbers = targets * data.target_std + data.target_mean
    torch.testing.assert_close(numbers[:, 1], -2 * numbers[:, 0])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"text": ["a", None] * 10}, r"row \d+ of 'text' of \w+ has no text"),
        ({"text": [[1, 2], [3, -1, 2]] * 10}, r"row \d+ of 'text' of \w+ is \[3, -1, 2\], no list of tokens"),
        ({"text": [[1, 2], []] * 10}, r"is \[\], no list of tokens"),
        ({"text": [[1, 2], [1, None, 2]] * 10}, r"is \[1, None, 2\], no list of tokens"),
    ],
)
def test_a_row_without_tokens_is_named(column, message, tmp_path):
    datasets.Dataset.from_dict(column | {"y": ["a", "a", "b", "b"] * 5}).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "t.parquet", input="text", target="y")


def test_runs_learn_a_text_and_ranks_give_one_record(tokenizer, tmp_path):
    words = [
        "data=huggingface", "data.path=t.jsonl", "data.input=text", "data.target=kind", "model=encoder",
        "data.tokenizer=bert", "data.cache=kept", "model.width=16", "model.layers=1", "sampling=group_by_length",
        "optimizer=adamw", "optimizer.lr=0.01", "batch.global_size=14", "epochs=12", "threads=1", "hydra.run.dir=run",
        "num_workers=0",
    ]  # fmt: skip
    found = {}
    for world in (1, 2):
        place = tmp_path / str(world)
        place.mkdir()
        saved(place / "t.jsonl", 200)
        (place / "bert").symlink_to(tokenizer)
        train(words, place, world).ok()
        found[world] = rows(place / "run")
    for row, expected in zip(found[2], found[1], strict=True):
        assert row == pytest.approx(expected, rel=1e-2, abs=1e-3)
    assert summary(tmp_path / "1/run")["final"]["test/accuracy"] > 0.9
