"""Hugging Face datasets: rows beside those of the library itself, and of the same arrays held in memory."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_loop import same_bits
from options import option
from processes import rows, summary, train

from launcher.batching.stream import in_order
from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data
from launcher.data.huggingface import Images
from launcher.losses.loss import build_loss

pytestmark = pytest.mark.versions

datasets = pytest.importorskip("datasets")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def load(path, **changes) -> Data:
    return build("data", option("data", "huggingface", path=str(path)) | changes)


def every(part, workers=0):
    """All inputs and targets of a part, in order."""
    inputs, targets = zip(*in_order(part, 0, 1, 7, CPU, workers), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def raw(data, inputs):
    """Inputs as the file has them."""
    return (inputs.double() * data.input_std.view(data.input_shape) + data.input_mean.view(data.input_shape)).float()


def pictures(n: int, mode="RGB", side=(6, 5), seed=0):
    from PIL import Image

    random = np.random.RandomState(seed)
    shape = (*side[::-1], 3) if mode == "RGB" else side[::-1]
    return [Image.fromarray(random.randint(256, size=shape).astype(np.uint8), mode) for _ in range(n)]


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


def test_grey_images_and_other_sizes():
    from PIL import ImageOps

    grey, wide = pictures(3, "L"), pictures(1, "L", side=(12, 5), seed=7)
    stay, fit = Images("L", (6, 5), False), Images("RGB", (4, 4), True)
    assert torch.equal(stay(grey), torch.from_numpy(np.stack([np.asarray(image) for image in grey]))[:, None])
    with pytest.raises(ValueError, match=r"12 x 5 pixels, and the first one 6 x 5; set data\.image_size"):
        stay([*grey, *wide])
    expected = [np.asarray(ImageOps.fit(image.convert("RGB"), (4, 4), 2)) for image in (*grey, *wide)]
    assert torch.equal(fit([*grey, *wide]), torch.from_numpy(np.stack(expected).transpose(0, 3, 1, 2)))
    with pytest.raises(ValueError, match="no image"):
        stay([None])


def table(n=30, seed=0):
    random = np.random.RandomState(seed)
    inputs = random.randn(n, 4).astype(np.float32)
    return inputs, inputs @ random.randn(4, 2) + 5


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


def test_classes_of_text_and_of_numbers_in_csv_and_json(tmp_path):
    (tmp_path / "t.csv").write_text("x,kind,size\n" + "".join(f"{i},{'ab'[i % 2]},{i % 3 + 5}\n" for i in range(30)))
    of_text = load(tmp_path / "t.csv", input="x", target="kind")
    assert (of_text.class_names, of_text.input_shape) == (["a", "b"], (1,))
    inputs, targets = every(of_text.train)
    assert torch.equal(raw(of_text, inputs)[:, 0].round() % 2, targets.float())
    of_numbers = load(tmp_path / "t.csv", input="x", target="size")
    assert of_numbers.class_names == ["5", "6", "7"]
    inputs, targets = every(of_numbers.test)
    assert torch.equal(raw(of_numbers, inputs)[:, 0].round() % 3, targets.float())
    assert load(tmp_path / "t.csv", input="x", target="size", task="regression").task == "regression"
    lines = [json.dumps({"x": [[i, 1], [2, 3]], "y": i % 2 == 0}) for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    of_truth = load(tmp_path / "t.jsonl", input="x", target="y")
    assert (of_truth.class_names, of_truth.input_shape) == (["False", "True"], (2, 2))


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


def test_things_that_may_occur_together_stay_0_and_1(tmp_path):
    inputs, several = table()[0], np.arange(90).reshape(30, 3) % 2
    datasets.Dataset.from_dict({"x": inputs.tolist(), "y": several.tolist()}).to_parquet(tmp_path / "several.parquet")
    data = load(tmp_path / "several.parquet", input="x", target="y")
    assert (
        data.task == "multilabel"
        and data.target_mean is None
        and set(data.train.targets.unique().tolist()) == {0.0, 1.0}
    )
    build_loss({"_target_": "launcher.losses.binary_cross_entropy.BinaryCrossEntropy", "pos_weight": None}, data)


def prices(n=2000):
    """House prices as they come: whole numbers, nearly all different; and inputs near 10^12."""
    random = np.random.RandomState(0)
    return {"x": (10**12 + random.randint(0, 10**6, n)).tolist(), "price": random.randint(15_000, 500_001, n).tolist()}


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (prices()["price"], "regression"),  # were 1,996 classes
        ([float(price) for price in prices()["price"]], "regression"),
        ([i % 7 for i in range(2000)], "classification"),
        ([float(i % 2) for i in range(2000)], "classification"),  # were numbers, as pandas makes of whole ones
        ([i % 2 + 0.5 for i in range(2000)], "regression"),
        ([i % 2 == 0 for i in range(2000)], "classification"),
        (["ab"[i % 2] for i in range(2000)], "classification"),
        ([[i % 2, 1] for i in range(2000)], "multilabel"),
        ([[i % 3, i % 5] for i in range(2000)], "regression"),
    ],
)
def test_a_task_is_guessed_as_that_of_the_same_table_in_csv(targets, task, tmp_path):
    from launcher.data import csv

    content = {"x": [(7 * i) % 2000 for i in range(2000)], "y": targets}
    dataset = datasets.Dataset.from_dict(content)
    dataset.to_parquet(str(tmp_path / "t.parquet"))
    data = load(tmp_path / "t.parquet", input="x", target="y")
    assert data.task == task
    if not isinstance(targets[0], list):
        dataset.to_csv(str(tmp_path / "t.csv"))
        of_csv = csv.load(str(tmp_path / "t.csv"), "y", "auto", ",", ".", None, [], 0.2, 0.1, 0)
        assert of_csv.task == task and of_csv.class_names == data.class_names
        kinds = (int, float) if not isinstance(targets[0], bool) else ()
        assert [n for n in data.notes if n in of_csv.notes] == [n for n in data.notes if isinstance(targets[0], kinds)]
        assert torch.equal(of_csv.test.targets, data.test.targets.view_as(of_csv.test.targets))
        torch.testing.assert_close(every(data.train)[0], of_csv.train.inputs, rtol=0, atol=0)


def test_numbers_near_a_million_millions_train_as_those_of_csv_do(tmp_path):
    content = prices()
    content["y"] = [(x - 10**12) / 10**5 + 0.1 * (i % 7) for i, x in enumerate(content["x"])]
    datasets.Dataset.from_dict(content).to_parquet(str(tmp_path / "t.parquet"))
    datasets.Dataset.from_dict({k: content[k] for k in ("x", "y")}).to_csv(str(tmp_path / "t.csv"))
    run = ["loss=mse", "epochs=2", "threads=1", "num_workers=0", "optimizer.lr=0.01"]
    words = ["data=huggingface", "data.path=t.parquet", "data.input=x", "data.target=y", "hydra.run.dir=hf"]
    train([*run, *words], tmp_path).ok()
    train([*run, "data=csv", "data.path=t.csv", "data.target=y", "hydra.run.dir=csv"], tmp_path, name="io1").ok()
    ours, theirs = (summary(tmp_path / name)["final"] for name in ("hf", "csv"))
    assert ours["test/loss"] == pytest.approx(theirs["test/loss"], rel=1e-4) and ours["test/r2"] > 0.9
    assert (
        "different values: a regression (data.task=classification takes each for a class)"
        in (tmp_path / "hf/train.log").read_text()
    )


def test_the_format_that_a_dataset_was_saved_with_hides_nothing(tmp_path):
    content = {"x": [[0.1 * i, float(i)] for i in range(40)], "y": [i % 2 for i in range(40)]}
    plain = datasets.Dataset.from_dict(content)
    plain.save_to_disk(str(tmp_path / "plain"))
    plain.with_format("torch", columns=["y"]).save_to_disk(str(tmp_path / "formatted"))
    one, two = (load(tmp_path / name, input="x", target="y") for name in ("plain", "formatted"))
    assert torch.equal(every(one.train)[0], every(two.train)[0]) and torch.equal(one.input_mean, two.input_mean)


def test_each_part_may_number_the_classes_in_its_own_order(tmp_path):
    parts = {}
    for part, names in {"train": ["cat", "dog", "cow"], "test": ["cow", "cat", "dog"]}.items():
        features = datasets.Features({"x": datasets.Value("float64"), "y": datasets.ClassLabel(names=names)})
        spoken = [["cat", "dog", "cow"][i % 3] for i in range(30)]
        content = {"x": [float(i % 3) for i in range(30)], "y": spoken}
        parts[part] = datasets.Dataset.from_dict(content, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    data = load(tmp_path / "d", input="x", target="y")
    assert data.class_names == ["cat", "dog", "cow"] and data.test.targets.tolist() == [0, 1, 2] * 10


def test_grey_and_coloured_images_in_any_order(tmp_path):
    """The channels were those of the first row for all."""
    for first, both in {"L": pictures(30, "L") + pictures(30), "RGB": pictures(30) + pictures(30, "L")}.items():
        content = {"image": both, "label": [i % 2 for i in range(60)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        datasets.Dataset.from_dict(content, features=features).save_to_disk(str(tmp_path / first))
        data = load(tmp_path / first, input="image", target="label")
        assert data.input_shape == (3, 5, 6)
        assert load(tmp_path / first, input="image", target="label", channels=1).input_shape == (1, 5, 6)
    rare = Images("L", (6, 5), False, None, sure=False)
    with pytest.raises(
        ValueError, match=r"an image has colours, and those looked at first are grey; set data\.channels"
    ):
        rare(pictures(1))
    assert rare(pictures(2, "L")).shape == (2, 1, 5, 6)


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
        (
            "t.csv",
            {"input": "word", "target": "x", "task": "regression"},
            ["data.input", "'word'", "images nor numbers"],
        ),
        ("t.csv", {"input": "x", "target": "gap"}, ["data.target", "'gap'", "remove"]),
        ("t.jsonl", {"input": "day", "target": "word"}, ["data.input", "'day'", "timestamp", "images nor numbers"]),
        ("t.jsonl", {"input": "x", "target": "day"}, ["data.target", "'day'", "no classes", "data.task"]),
        ("t.jsonl", {"input": "x", "target": "box"}, ["data.target", "'box'", "no classes"]),
        ("t.jsonl", {"input": "list", "target": "word"}, ["data.input", "2 numbers, and the first one 1"]),
        ("t.csv", {"input": "x", "target": "one"}, ["data.target", "one class"]),
        ("t.csv", {"input": "x", "target": "word", "task": "regression"}, ["data.target", "word", "no numbers"]),
    ],
)
def test_wrong_input_is_named(path, changes, words, tmp_path):
    (tmp_path / "note.txt").write_text("no data")
    (tmp_path / "broken.parquet").write_text("no parquet")
    lines = [{"x": i, "day": f"2020-01-0{i + 1}T00:00:00", "box": {"a": i}, "list": [1] * (1 + i), "word": f"{i % 2}"}
             for i in range(9)]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "t.csv").write_text("x,word,gap,one\n" + "".join(f"{i},w{i},{i or ''},1\n" for i in range(9)))
    if path in ("saved", "unlabelled"):
        saved(tmp_path / path, unlabelled=path == "unlabelled")
    place = path if path is None or "/" in path else tmp_path / path
    with pytest.raises(ConfigError) as caught:
        settings = option("data", "huggingface")
        settings |= {"path": place and str(place), "input": "image", "target": "label"} | changes
        build("data", settings)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


# Whole runs

RUN = [
    "data=huggingface", "data.path=saved", "data.input=image", "data.target=label", "model=cnn", "model.channels=[8]",
    "model.dense=8", "batch.global_size=14", "batch.max_per_device=3", "epochs=6", "log_every=4", "eval_every=5",
    "checkpoint.every=4", "threads=1", "hydra.run.dir=run", "optimizer.lr=0.05", "num_workers=0",
]  # fmt: skip


@pytest.mark.soak
def test_any_number_of_ranks_gives_the_same_record_and_a_stopped_run_the_same_bits(tmp_path):
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
