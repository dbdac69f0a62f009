"""Texts that a run did not learn from, beside the tokenizer's own encoding and beside the model called by hand."""

import csv
import json

import pandas
import pytest
import torch
from datasets_on_disk import cache, datasets, load  # noqa: F401
from options import option
from processes import command, train
from test_text_columns import saved, tokenizer, tokenizers  # noqa: F401

import launcher
from launcher.core.errors import ConfigError
from launcher.run import provenance
from launcher.run.saved import own_data, read_others

pytestmark = pytest.mark.versions
NEW = ["the cat sat", "dog", "on the naïve mat and the dog and the cat and the mat"]


@pytest.fixture
def record(tmp_path, tokenizer):  # noqa: F811
    saved(tmp_path / "t.jsonl")
    words = {"input": "text", "target": "kind", "tokenizer": str(tokenizer), "max_tokens": 8}
    return provenance.record_of(load(tmp_path / "t.jsonl", cache=str(tmp_path / "kept"), **words))


def write(path, **columns):
    frame = pandas.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


@pytest.mark.parametrize("name", ["n.csv", "n.tsv", "n.jsonl", "n.parquet", "a list"])
def test_they_become_the_tokens_of_the_runs_own_tokenizer(name, record, tokenizer, tmp_path):  # noqa: F811
    file = NEW if name == "a list" else write(tmp_path / name, other=[1, 2, 3], text=NEW)
    before = sorted((tmp_path / "kept").rglob("*"))
    others = read_others(record, file)
    assert others.names == ["0", "1", "2"] and not others.labelled
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(8)
    for i, text in enumerate(NEW):
        assert others.split.dataset[i][0]["input_ids"].tolist() == theirs.encode(text).ids
    assert sorted((tmp_path / "kept").rglob("*")) == before, "what is new is not kept"


def test_true_values_are_understood_where_they_are_there(record, tmp_path):
    others = read_others(record, write(tmp_path / "n.csv", text=NEW, kind=["pet", "other", "pet"]))
    names = [record["class_names"][target] for target in others.split.targets]
    assert others.labelled and names == ["pet", "other", "pet"]
    numbers = [float(len(text)) for text in NEW * 10]
    file = write(tmp_path / "r.csv", text=NEW * 10, size=numbers)
    of_numbers = provenance.record_of(load(file, input="text", target="size", task="regression"))
    found = read_others(of_numbers, write(tmp_path / "s.csv", text=NEW, size=[1.0, 2.0, 3.0])).split.targets
    mean, std = (of_numbers[f"target_{one}"][0] for one in ("mean", "std"))
    torch.testing.assert_close(found[:, 0] * std + mean, torch.tensor([1.0, 2, 3]).double())


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"texts": NEW}, r"input=.*n\.csv: it has no column 'text', .* it has: texts"),
        ({"text": [1, 2, 3]}, r"its column 'text' holds numbers, no text"),
        ({"text": ["a", None, "b"]}, r"input: row 1 of 'text' of .*n\.csv has no text"),
        ({"text": NEW, "kind": ["pet", "cow", "pet"]}, r"row 1 has 'kind' = 'cow', .* those are: other, pet"),
    ],
)
def test_what_is_wrong_is_a_sentence(columns, said, record, tmp_path):
    with pytest.raises(ConfigError, match=said):
        read_others(record, write(tmp_path / "n.csv", **columns))


def test_another_tokenizer_is_refused_and_a_run_from_before_goes_on(record, tokenizer, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match=r"input=nowhere\.csv: there is no such file"):
        read_others(record, "nowhere.csv")
    words = {"input": "text", "target": "kind", "tokenizer": str(tokenizer), "max_tokens": 8}
    run = {
        "data": option("data", "huggingface", path=str(tmp_path / "t.jsonl")) | words,
        "limit_batches": None, "divergence": {"action": "stop"}, "batch": {"global_size": 4},
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
    }  # fmt: skip
    own_data(run, {}, record | {"reader": None})
    tokenizer.rename(tmp_path / "moved")
    own_data(run, {"tokenizer": str(tmp_path / "moved")}, record)
    content = json.loads((tmp_path / "moved/tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["cat"], vocab["dog"] = vocab["dog"], vocab["cat"]
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*bert: is not the tokenizer that the run learned with"):
        read_others(record, NEW)


@pytest.mark.soak
def test_predictions_are_those_of_the_model_called_by_hand(tmp_path, monkeypatch):
    saved(tmp_path / "t.jsonl")
    words = [
        "data=huggingface", "data.path=t.jsonl", "data.input=text", "data.target=kind", "data.max_tokens=32",
        "model=encoder", "model.width=8", "model.layers=1", "model.heads=2", "epochs=2", "threads=1",
    ]  # fmt: skip
    train([*words, "hydra.run.dir=run"], tmp_path).ok()
    write(tmp_path / "new.csv", text=NEW)
    command("predict", ["run_dir=run", "input=new.csv", "output=p.csv", "threads=1"], tmp_path, name="io-p").ok()
    monkeypatch.chdir(tmp_path)
    model = launcher.load("run")
    found = list(csv.DictReader(open("p.csv")))  # noqa: SIM115
    for i, text in enumerate(NEW):
        tokens = torch.tensor([[1, *(2 + byte for byte in text.encode())][:32]])
        with torch.no_grad():
            wanted = model({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}).softmax(1)[0]
        for k, name in enumerate(model.class_names):
            assert float(found[i][f"p_{name}"]) == pytest.approx(wanted[k].item(), abs=1e-5)
    for samples in (NEW, "new.csv", pandas.DataFrame({"text": NEW})):
        assert model.predict(samples)["predicted"].tolist() == [row["predicted"] for row in found]
    for wrong, said in (("a text", "give a list"), ([3], "number 0 is 3, no text"), ([], "are none")):
        with pytest.raises(ConfigError, match=said):
            model.predict(wrong)
