"""Hugging Face datasets: rows beside those of the library itself, and of the same arrays held in memory."""

import gzip
import io
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_on_disk import cache, datasets, every, load, pictures, raw, table  # noqa: F401
from kill_loop import same_bits
from options import option
from processes import rows, summary, train

from launcher.config.components import build
from launcher.core.errors import ConfigError

pytestmark = pytest.mark.versions


def saved(path, n=40, unlabelled=False):
    """A directory of save_to_disk with images in `image` and four named classes in `label`, n of them to train."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "cow", "hen"])}
    )
    parts = {}
    for seed, (name, size) in enumerate({"train": n, "test": 11}.items()):
        content = {"image": pictures(size, seed=seed), "label": [i % 4 for i in range(size)]}
        if unlabelled and name == "test":
            content["label"][2] = -1
        parts[name] = datasets.Dataset.from_dict(content, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(path))
    return parts


def test_images_are_those_of_the_library(tmp_path):
    parts = saved(tmp_path / "saved")
    data = load(tmp_path / "saved", input="image", target="label", mean=[0.4, 0.5, 0.6], std=0.25)
    assert (data.task, data.input_shape, data.num_outputs) == ("classification", (3, 5, 6), 4)
    assert data.class_names == ["cat", "dog", "cow", "hen"] and data.class_counts.tolist() == [9, 9, 9, 9]
    assert [len(data.train), len(data.validation), len(data.test)] == [36, 4, 11]
    inputs, targets = every(data.test)
    pixels = np.stack([np.asarray(row["image"]) for row in parts["test"]]).transpose(0, 3, 1, 2) / 255
    expected = (pixels - np.array([0.4, 0.5, 0.6])[:, None, None]) / 0.25
    torch.testing.assert_close(inputs, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)
    assert targets.tolist() == parts["test"]["label"][:] and targets.dtype == torch.int64
    assert data.train.dataset[3][0].dtype == torch.uint8
    raw = {row["image"].tobytes(): row["label"] for row in parts["train"]}
    seen = {
        image.permute(1, 2, 0).numpy().tobytes(): int(label)
        for part in (data.train, data.validation)
        for image, label in (part.dataset[i] for i in range(len(part)))
    }
    assert seen == raw  # each once, with its own label


def test_workers_read_the_same(tmp_path):
    saved(tmp_path / "saved")
    data = load(tmp_path / "saved", input="image", target="label")
    for found, expected in zip(every(data.train, workers=2), every(data.train), strict=True):
        assert torch.equal(found, expected)


def test_vectors_of_a_parquet_file_as_a_regression(tmp_path):
    inputs, targets = table()
    content = {"x": inputs.tolist(), "y": targets.tolist(), "first": targets[:, 0].tolist()}
    datasets.Dataset.from_dict(content).to_parquet(str(tmp_path / "table.parquet"))
    data = load(tmp_path / "table.parquet", input="x", target="y", test=0.3, validation=0.1)
    assert (data.task, data.input_shape, data.num_outputs) == ("regression", (4,), 2)
    assert [len(data.train), len(data.validation), len(data.test)] == [19, 2, 9]
    x, y = (torch.cat(both) for both in zip(*map(every, (data.train, data.validation, data.test)), strict=True))
    original = (y * data.target_std + data.target_mean).float()
    of_train = every(data.train)[0].double()
    torch.testing.assert_close(of_train.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(of_train.std(0, correction=0), torch.ones(4).double())
    x = raw(data, x)
    order = torch.from_numpy(inputs[:, 0]).argsort()
    torch.testing.assert_close(x[x[:, 0].argsort()], torch.from_numpy(inputs)[order])
    torch.testing.assert_close(
        original[x[:, 0].argsort()], torch.from_numpy(targets).float()[order], rtol=1e-4, atol=1e-4
    )
    of_train = every(data.train)[1]
    torch.testing.assert_close(of_train.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(of_train.std(0, correction=0), torch.ones(2).double())
    assert load(tmp_path / "table.parquet", input="x", target="first").num_outputs == 1


def test_splits_by_name(tmp_path):
    (tmp_path / "d").mkdir()
    for name, size in (("train", 20), ("validation", 6), ("test", 5)):
        inputs, targets = table(size, seed=size)
        content = {"x": inputs.tolist(), "y": targets.tolist()}
        datasets.Dataset.from_dict(content).to_parquet(str(tmp_path / "d" / f"{name}.parquet"))
    data = load(tmp_path / "d", input="x", target="y")
    assert [len(data.train), len(data.validation), len(data.test)] == [20, 6, 5]
    torch.testing.assert_close(raw(data, every(data.validation)[0]), torch.from_numpy(table(6, seed=6)[0]))
    splits = {"train": "validation", "validation": "test", "test": "train"}
    data = load(tmp_path / "d", input="x", target="y", splits=splits)
    assert [len(data.train), len(data.validation), len(data.test)] == [6, 5, 20]


def test_no_row_is_in_two_parts(tmp_path):
    """A split that is named for one part is not taken for another because of its own name."""
    saved(tmp_path / "photos")
    splits = {"train": "test", "validation": None, "test": None}
    data = load(tmp_path / "photos", input="image", target="label", splits=splits)
    assert len(data.train) + len(data.validation) + len(data.test) == 11
    with pytest.raises(ConfigError, match=r"data\.splits\.test: 'train' is what train takes"):
        load(tmp_path / "photos", input="image", target="label", splits=splits | {"train": "train", "test": "train"})


def test_the_format_that_a_dataset_was_saved_with_hides_nothing(tmp_path):
    content = {"x": [[0.1 * i, float(i)] for i in range(40)], "y": [i % 2 for i in range(40)]}
    plain = datasets.Dataset.from_dict(content)
    plain.save_to_disk(str(tmp_path / "plain"))
    plain.with_format("torch", columns=["y"]).save_to_disk(str(tmp_path / "formatted"))
    one, two = (load(tmp_path / name, input="x", target="y") for name in ("plain", "formatted"))
    assert torch.equal(every(one.train)[0], every(two.train)[0]) and torch.equal(one.input_mean, two.input_mean)


@pytest.mark.parametrize(
    ("row", "words"), [([1.0, None, 3.0], "missing or not finite"), ([1.0, 2.0], "a row has 2 numbers, and the first")]
)
def test_a_row_that_cannot_be_a_sample_is_named_before_the_run(row, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"x": row if i == 7 else [i, 2.0, 3.0], "y": i % 2}) + "\n" for i in range(40))
    )
    words_of_run = ["data=huggingface", "data.path=rows.jsonl", "data.input=x", "data.target=y", "model.hidden=[4]"]
    run = train([*words_of_run, "batch.global_size=40", "epochs=1", "hydra.run.dir=run"], tmp_path).wait()
    assert run.status == [2] and words in run.err() and "Traceback" not in run.err(), run.err()
    assert not (tmp_path / "run").exists()


def test_a_cached_dataset_is_found_by_its_name(tmp_path):
    inputs, targets = table()
    place = tmp_path / "cache" / "someone___things" / "default" / "0.0.0" / "0123456789abcdef"
    place.mkdir(parents=True)
    things = datasets.Dataset.from_dict({"x": inputs.tolist(), "y": targets.tolist()})
    things.to_parquet(str(tmp_path / "things.parquet"))
    local = datasets.load_dataset("parquet", data_files=str(tmp_path / "things.parquet"), split="train")
    for file in Path(local.cache_files[0]["filename"]).parent.iterdir():
        (place / file.name.replace("parquet-", "things-")).write_bytes(file.read_bytes())
    data = load("someone/things", input="x", target="y")
    assert len(data.train) + len(data.validation) + len(data.test) == 30


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        (None, {}, ["data.path", "no dataset", "save_to_disk"]),
        ("nobody/nothing", {}, ["data.path", "nobody/nothing", "data.download=true"]),
        ("note.txt", {}, ["data.path", "note.txt", ".parquet"]),
        ("broken.parquet", {}, ["data.path", "broken.parquet"]),
        ("saved", {"input": "picture"}, ["data.input", "'picture'", "image, label"]),
        ("saved", {"input": None}, ["data.input", "image, label"]),
        ("saved", {"target": "y"}, ["data.target", "'y'", "image, label"]),
        ("saved", {"splits": {"train": "train", "validation": "dev", "test": None}}, ["splits.validation", "'dev'"]),
        ("saved", {"splits": {"train": None}}, ["data.splits", "validation"]),
        ("saved", {"task": "language"}, ["data.task", "regression"]),
        ("saved", {"task": "multilabel"}, ["data.target", "0 and 1", "data.task=multilabel"]),
        ("saved", {"channels": 2}, ["data.channels", "2"]),
        ("saved", {"bits": 8}, ["data.bits", "8"]),
        ("saved", {"image_size": 0}, ["data.image_size", "0"]),
        ("saved", {"mean": [0.5, 0.5]}, ["data.mean", "3 channels"]),
        ("saved", {"std": 0}, ["data.std", "0"]),
        ("saved", {"split_seed": -1}, ["data.split_seed", "-1"]),
        ("saved", {"validation": 0}, ["data.validation", "(0, 1)"]),
        ("saved", {"download": "no"}, ["data.download", "'no'"]),
        ("unlabelled", {}, ["data.target", "row 2", "-1"]),
        ("t.csv", {"input": ["x", "word"], "target": "two"}, ["word holds text", "Several columns must be"]),
        ("t.csv", {"input": ["x", "x"], "target": "word"}, ["data.input", "twice"]),
        ("t.csv", {"input": [], "target": "word"}, ["data.input", "no column"]),
        ("t.csv", {"input": "one", "target": ["word", "x"]}, ["data.target", "'word'", "not one number per row"]),
        (
            "t.csv",
            {"input": "two", "target": ["x", "one"], "task": "classification"},
            ["several columns", "multilabel"],
        ),
        ("t.csv", {"input": ["one", "x"], "target": ["x"]}, ["data.input, data.target", "'x'"]),
        ("t.csv", {"input": "x", "target": "two", "image_size": 8}, ["data.image_size=8", "x holds no images"]),
        ("t.csv", {"input": "word", "target": "two", "channels": 3}, ["data.channels=3", "word holds no images"]),
        ("t.csv", {"input": "word", "target": "word", "max_tokens": 0}, ["data.max_tokens", "0"]),
        ("t.csv", {"input": "word", "target": "x", "tokenizer": "no.json"}, ["data.tokenizer", "no.json"]),
        ("t.csv", {"input": "x", "target": "gap"}, ["data.target", "'gap'", "remove"]),
        ("t.jsonl", {"input": "day", "target": "word"}, ["data.input", "'day'", "timestamp", "shape nor text"]),
        ("t.jsonl", {"input": "x", "target": "day"}, ["data.target", "'day'", "no classes", "data.task"]),
        ("t.jsonl", {"input": "x", "target": "box"}, ["data.target", "'box'", "no classes"]),
        ("t.jsonl", {"input": "list", "target": "word"}, ["data.input", "2 numbers, and the first one 1"]),
        ("t.csv", {"input": "x", "target": "one"}, ["data.target", "one class"]),
        ("t.csv", {"input": "x", "target": "word"}, ["9 rows", "at least two of each class"]),
        ("t.csv", {"input": "x", "target": "word", "task": "regression"}, ["data.target", "word", "no numbers"]),
    ],
)
def test_wrong_input_is_named(path, changes, words, tmp_path):
    (tmp_path / "note.txt").write_text("no data")
    (tmp_path / "broken.parquet").write_text("no parquet")
    lines = [{"x": i, "day": f"2020-01-0{i + 1}T00:00:00", "box": {"a": i}, "list": [1.5] * (1 + i), "word": f"{i % 2}"}
             for i in range(9)]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [f"{i},w{i},{i or ''},1,{i % 2}" for i in range(9)]
    (tmp_path / "t.csv").write_text("\n".join(["x,word,gap,one,two", *lines, ""]))
    if path in ("saved", "unlabelled"):
        saved(tmp_path / path, unlabelled=path == "unlabelled")
    place = path if path is None or "/" in path else tmp_path / path
    with pytest.raises(ConfigError) as caught:
        settings = option("data", "huggingface")
        settings |= {"path": place and str(place), "input": "image", "target": "label"} | changes
        build("data", settings)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_several_columns_are_one_vector(tmp_path):
    numbers = np.random.RandomState(0).randn(30, 4)
    content = {name: numbers[:, i].tolist() for i, name in enumerate("abcd")}
    datasets.Dataset.from_dict(content).to_parquet(str(tmp_path / "t.parquet"))
    data = load(tmp_path / "t.parquet", input=["c", "a"], target=["b", "d"])
    assert (data.task, data.input_shape, data.num_outputs) == ("regression", (2,), 2)
    inputs, targets = every(data.test)
    rows = {row[2].round(3): row for row in numbers}
    for x, y in zip(raw(data, inputs), targets * data.target_std + data.target_mean, strict=True):
        row = rows[np.float64(x[0]).round(3)]
        assert x.tolist() == pytest.approx(row[[2, 0]], abs=1e-5) and y.tolist() == pytest.approx(row[[1, 3]], abs=1e-5)
    labels = {"x": numbers[:, 0].tolist(), "wet": [i % 2 for i in range(30)], "cold": [i // 2 % 2 for i in range(30)]}
    datasets.Dataset.from_dict(labels).to_parquet(str(tmp_path / "l.parquet"))
    assert load(tmp_path / "l.parquet", input="x", target=["wet", "cold"]).task == "multilabel"


def test_packed_tables_and_images_as_bytes(tmp_path):
    text = "x\tkind\n" + "".join(f"{i}\t{'ab'[i % 2]}\n" for i in range(30))
    (tmp_path / "t.tsv").write_text(text)
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.replace("\t", ",").encode()))
    found = [every(load(tmp_path / name, input="x", target="kind").test) for name in ("t.tsv", "t.tsv.gz", "t.csv.gz")]
    assert all(torch.equal(one, other) for pair in found for one, other in zip(pair, found[0], strict=True))
    images, files = pictures(30), []
    for image in images:
        image.save(file := io.BytesIO(), format="PNG")
        files.append(file.getvalue())
    labels = [i % 3 for i in range(30)]
    kept = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=kept).save_to_disk(str(tmp_path / "i"))
    datasets.Dataset.from_dict({"image": files, "label": labels}).to_parquet(str(tmp_path / "bytes.parquet"))
    pairs = [{"bytes": file, "path": None} for file in files]
    names = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.Value("int64"),
        }
    )
    plain = datasets.Dataset.from_dict({"image": pairs, "label": labels}, features=names)
    plain.to_parquet(str(tmp_path / "struct.parquet"))
    expected = every(load(tmp_path / "i", input="image", target="label").train)
    for name in ("bytes.parquet", "struct.parquet"):
        found = every(load(tmp_path / name, input="image", target="label").train)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


RUN = [
    "data=huggingface", "data.path=saved", "data.input=image", "data.target=label", "model=cnn", "model.channels=[8]",
    "model.dense=8", "batch.global_size=14", "batch.max_per_device=3", "epochs=6", "log_every=4", "eval_every=5",
    "checkpoint.every=4", "threads=1", "hydra.run.dir=run", "optimizer.lr=0.05", "num_workers=0",
]  # fmt: skip


@pytest.mark.soak
def test_ranks_give_one_record_and_a_stopped_run_the_same_bits(tmp_path):
    directories = {name: tmp_path / name for name in ("1", "2", "stopped")}
    for directory in directories.values():
        directory.mkdir()
        saved(directory / "saved", 60)
    words = [*RUN, "model.dropout=0.0"]
    for world in (1, 2):
        train(words, directories[str(world)], world).ok()
    for row, expected in zip(rows(directories["2"] / "run"), rows(directories["1"] / "run"), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert summary(directories["1"] / "run")["final"]["test/accuracy"] >= 0
    run = train(words, directories["stopped"])
    while run.processes[0].exitcode is None:
        record = directories["stopped"] / "run/metrics.jsonl"
        if record.exists() and record.read_bytes().count(b"\n") >= 2:
            run.signal(0, signal.SIGTERM)
            break
        time.sleep(0.002)
    run.ok()
    assert (directories["stopped"] / "run/stopped.json").exists()
    train(words, directories["stopped"], name="io1").ok()
    same_bits(directories["1"], directories["stopped"])
