"""Dict batches for a model that takes their entries by name, beside the same model that takes the dict itself."""

import copy
import csv
import json

import pytest
import torch
from processes import command, rows, train
from safetensors.torch import load_file
from torch import nn

import launcher
from launcher.core.errors import ConfigError
from launcher.models.keywords import take_keywords

OWN = """
import torch
from torch import nn
from launcher.data import Data, DatasetSplit

class Words:
    def __init__(self, first, number):
        self.first, self.number = first, number

    def __len__(self):
        return self.number

    def __getitem__(self, i):
        random = torch.Generator().manual_seed(self.first + i)
        ids = torch.randint(20, (6,), generator=random)
        mask = (torch.arange(6) < 3 + i % 4).long()
        return {"ids": ids, "mask": mask}, int((ids * mask).sum() > 45)

def words():
    parts = (DatasetSplit(Words(100 * k, n)) for k, n in enumerate((24, 9, 8)))
    return Data("words", "classification", (6,), 2, *parts)

class Whole(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, num_classes)

    def forward(self, batch):
        states = self.embedding(batch["ids"]) * batch["mask"].unsqueeze(2)
        return self.head(states.sum(1) / batch["mask"].sum(1, keepdim=True))

class Named(Whole):
    def forward(self, ids, mask=None):
        return super().forward({"ids": ids, "mask": mask})

class Wrong(Whole):
    def forward(self, ids, lengths):
        return ids
"""
WORDS = [
    "data._target_=own_words.words", "optimizer.lr=0.5", "batch.global_size=8", "epochs=2", "log_every=1",
    "eval_every=2", "num_workers=0", "wandb.mode=disabled", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keywords")
    (directory / "own_words.py").write_text(OWN)
    train([*WORDS, "model._target_=own_words.Whole", "hydra.run.dir=whole"], directory, name="io-whole").ok()
    return directory


def newest(run):
    return load_file(max((run / "checkpoints").glob("step_*")) / "model.safetensors")


@pytest.mark.parametrize(
    ("world", "words", "same_bits"),
    [
        (1, [], True),
        (2, ["batch.max_per_device=2"], False),
        (2, ["strategy=fsdp", "ema_decay=0.5"], False),
        pytest.param(1, ["compile=true"], False, marks=pytest.mark.soak),
    ],
    ids=["alone", "ddp", "fsdp", "compiled"],
)
def test_it_is_trained_and_measured_as_a_model_that_takes_the_dict(world, words, same_bits, place):
    name = f"named{world}{len(words)}{'c' * ('compile=true' in words)}"
    run = [*WORDS, *words, "model._target_=own_words.Named", f"hydra.run.dir={name}"]
    train(run, place, world, name=f"io-{name}").ok()
    compared = "train/loss" if "ema_decay=0.5" in words else None
    for mine, expected in zip(rows(place / name), rows(place / "whole"), strict=True):
        keys = expected if compared is None else [key for key in expected if key == compared]
        for key in keys:
            assert mine[key] == (expected[key] if same_bits else pytest.approx(expected[key], rel=1e-4, abs=1e-6)), key
    assert newest(place / name).keys() == newest(place / "whole").keys()


@pytest.fixture(scope="module")
def read(place):
    train([*WORDS, "model._target_=own_words.Named", "hydra.run.dir=read"], place, name="io-read").ok()
    return place


def test_it_is_predicted_alike(read):
    tables = {}
    for name in ("read", "whole"):
        words = [f"run_dir={name}", "part=test", f"output={name}.csv", "threads=1"]
        command("predict", words, read, name=f"io-p-{name}").ok()
        with (read / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert tables["read"] == tables["whole"] and len(tables["read"]) == 8


@pytest.mark.parametrize("form", ["torch_export", pytest.param("onnx", marks=pytest.mark.soak)])
def test_it_is_exported_and_loaded(form, read, monkeypatch):
    monkeypatch.chdir(read)
    words = ["run_dir=read", f"format=[safetensors,{form}]", f"output={form}", "threads=1"]
    command("export", words, read, name=f"io-{form}").ok()
    about = json.loads((read / form / "metadata.json").read_text())
    assert about["input_dtype"] == {"ids": "int64", "mask": "int64"}
    model = launcher.load("read")
    # Another number of samples, and of another length
    inputs = {"ids": torch.arange(12).reshape(3, 4), "mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])}
    pairs = zip(*inputs.values(), strict=True)
    with torch.no_grad():
        means = [model.model.embedding(ids[mask.bool()]).mean(0) for ids, mask in pairs]
        by_hand = model.model.head(torch.stack(means))
        torch.testing.assert_close(model(inputs), by_hand)
        if form == "torch_export":
            torch.testing.assert_close(torch.export.load(read / form / "model.pt2").module()(inputs), by_hand)
            return
    session = pytest.importorskip("onnxruntime").InferenceSession(read / form / "model.onnx")
    (found,) = session.run(None, {name: one.numpy() for name, one in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), by_hand)


def test_keys_that_fit_nowhere_are_named_before_the_run(place):
    run = train([*WORDS, "model._target_=own_words.Wrong", "hydra.run.dir=wrong"], place, name="io-wrong").wait()
    assert run.status == [2] and not (place / "wrong").exists()
    assert "a dict of ids, mask" in run.err() and "has no parameter mask (needed: lengths)" in run.err(), run.err()


class Takes(nn.Module):
    """Says what it was given."""

    def __init__(self, kind):
        super().__init__()
        self.forward = getattr(self, kind)

    def some(self, a, b=None, *, c=None):
        return "some", a, b, c

    def rest(self, a, **others):
        return "rest", a, others

    def one(self, inputs):
        return "one", inputs

    def two(self, a, inputs):
        return "two", a, inputs

    def every(self, **others):
        return "every", others

    def tuple(self, *given):
        return "tuple", given


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("some", {"a": 1, "c": 3}, ("some", 1, None, 3)),
        ("rest", {"a": 1, "z": 2}, ("rest", 1, {"z": 2})),
        ("rest", {"y": 1, "z": 2}, ("rest", {"y": 1, "z": 2}, {})),
        ("one", {"y": 1, "z": 2}, ("one", {"y": 1, "z": 2})),
        ("one", {"inputs": 1}, ("one", 1)),
        ("every", {"y": 1}, ("every", {"y": 1})),
        ("tuple", {"y": 1}, ("tuple", ({"y": 1},))),
        ("one", 5, ("one", 5)),
        ("some", {"b": 1}, "lacks a value (needed: a)"),
        ("some", {"a": 1, "z": 2}, "has no parameter z. Its parameters are a, b, c"),
        ("two", {"a": 1, "z": 2}, "has no parameter z (needed: inputs)"),
    ],
)
def test_what_becomes_of_a_dict(kind, given, expected):
    model = copy.deepcopy(take_keywords(Takes(kind)))  # as a moving average is one
    if not isinstance(expected, str):
        assert model(given) == expected
        return
    with pytest.raises(ConfigError) as found:
        model(given)
    assert expected in str(found.value) and str(found.value).startswith("model: the inputs are a dict of ")


def test_several_arguments_and_names_stay_as_they_are():
    model = take_keywords(Takes("two"))
    assert model({"a": 1}, 2) == ("two", {"a": 1}, 2) and model({"a": 1}, inputs=2) == ("two", {"a": 1}, 2)
    assert not take_keywords(nn.Sequential(nn.Linear(2, 2)))._forward_pre_hooks


def test_the_compiler_makes_one_graph_of_it():
    torch.manual_seed(0)
    model = take_keywords(Scaled())
    inputs = {"values": torch.randn(4, 3), "by": torch.tensor(2.0)}
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(inputs), inputs["values"] * 2)


class Scaled(nn.Module):
    def forward(self, by, values):
        return by * values
