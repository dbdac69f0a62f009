"""What W&B gets beside figures: histograms, a table of predictions, code and the state of git, by its own reader."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from kill_loop import newest, place
from processes import REPOSITORY, train
from safetensors.torch import load_file
from test_resume import FAULTY, RUN_FAULTY
from torch import nn
from torch.utils.data import Dataset
from wandb_server import clean_environment, history, inspect, segments

from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.data.token_rows import token_split
from launcher.losses.per_sample import PerSample
from launcher.run import gallery
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import Supervised
from launcher.training import histograms

CODE = FAULTY + '\nCOLOUR = "teal"\n'
RATE = 0.05
WORDS = [
    "wandb.watch=all", "wandb.watch_every=4", "wandb.tables=7", "wandb.code=true", "wandb.mode=offline",
    "optimizer.momentum=0.0", f"optimizer.lr={RATE}", "scheduler=constant", "epochs=1", "log_every=5", "threads=1",
    "checkpoint.every=1", "checkpoint.keep=30", "hydra.run.dir=run", "batch.global_size=100", "model.hidden=[16]",
]  # fmt: skip


def _git(directory, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A run of the digits with a model of one's own, in a repository with a change and a remote with a password."""
    directory = place(tmp_path_factory.mktemp("shown"), FAULTY)
    _git(directory, "init", "-q")
    _git(directory, "add", "own.py")
    _git(directory, "commit", "-qm", "one")
    _git(directory, "remote", "add", "origin", "https://somebody:hunter2@example.com/some.git")
    place(directory, CODE)
    home = clean_environment(directory / "home", "http://127.0.0.1:9", None)
    run = train([*WORDS, "model._target_=own.Net"], directory, environment=home).ok()
    assert "WARNING" not in (directory / "run/train.log").read_text(), run.out()
    (segment,) = segments(directory / "run")
    return directory, inspect(segment), segment


def _histogram(row, name):
    return np.array(json.loads(json.dumps(row[f"{name}.values"]))), np.array(row[f"{name}.bins"])


def test_histograms_of_every_so_many_steps_are_those_of_the_weights_and_gradients(shown):
    """By NumPy, from the checkpoints: without momentum the gradient is what an update took, over the learning rate."""
    directory, records, _ = shown
    items = {item["_step"]: item for item in history(records)}
    steps = [step for step, item in items.items() if "parameters/layers.1.weight.bins" in item]
    assert steps == [4, 8, 12] and "train/loss" in items[13] and "train/loss" not in items[4]
    states = {
        step: load_file(directory / f"run/checkpoints/step_{step:08d}/model.safetensors") for step in (7, 8, 11, 12)
    }
    for step in (8, 12):
        for name, weights in states[step].items():
            counts, bins = _histogram(items[step], f"parameters/{name}")
            expected, ends = np.histogram(weights.numpy(), 64)
            np.testing.assert_allclose(bins, ends, rtol=1e-5, atol=1e-7)
            assert counts.sum() == weights.numel() and np.abs(counts - expected).sum() <= 4  # at the edges of bins
            gradient = (states[step - 1][name] - weights) / RATE
            counts, bins = _histogram(items[step], f"gradients/{name}")
            assert counts.sum() == gradient.numel()
            assert bins[[0, -1]] == pytest.approx([gradient.min().item(), gradient.max().item()], abs=1e-5)
            assert np.abs(np.cumsum(counts) - np.cumsum(np.histogram(gradient.numpy(), bins)[0])).max() <= 8


WATCHED = """
import sys, torch, wandb
from torch import nn
from launcher.training import histograms
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
net[0].bias.data.fill_(0.25)
with wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True)) as run:
    run.watch(net, log="all", log_freq=1)
    net(torch.randn(50, 6)).square().sum().backward()
    run.log({"x": 1}, step=0)
torch.save(histograms.of_model(net, "all"), sys.argv[1] + "/ours")
"""


@pytest.mark.soak
def test_they_are_those_of_wandb_watch_itself(tmp_path):
    environment = clean_environment(tmp_path, "http://127.0.0.1:9", None) | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path)], env=environment, check=True, capture_output=True)
    ours = torch.load(tmp_path / "ours")
    (item,) = history(inspect(segments(tmp_path)[0]))
    assert {name.removesuffix(".bins") for name in item if name.endswith(".bins")} == set(ours) and len(ours) == 8
    for name, (low, high, *counts) in ours.items():
        theirs, bins = _histogram(item, name)
        assert theirs.tolist() == counts, name
        np.testing.assert_allclose(bins, np.linspace(low, high, len(counts) + 1), rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_or_not_there_has_no_place_in_a_histogram():
    inf, nan = torch.inf, torch.nan
    found = histograms.of_tensors({
        "mixed": torch.tensor([0.0, inf, 64.0, nan, 63.5, -inf]), "sick": torch.tensor([nan, inf]),
        "empty": torch.empty(0, 3), "flat": torch.full((2, 3), -1.5), "half": torch.tensor([1.0, 2.0]).half(),
    })  # fmt: skip
    assert set(found) == {"mixed", "flat", "half"} and found["flat"] == [-1.5, -1.5, 6]
    assert found["mixed"][:2] == [0, 64] and found["mixed"][2] == 1 and found["mixed"][-1] == 2
    assert sum(found["mixed"][2:]) == 3 and sum(found["half"][2:]) == 2
    net = nn.Linear(2, 2)
    assert histograms.of_model(net, "gradients") == {} and len(histograms.of_model(net, "all")) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_they_are_those_of_the_cpu(dtype):
    named = {str(n): torch.randn(n).to(dtype) for n in (1, 50, 10_000)}
    theirs = histograms.of_tensors({name: tensor.cuda() for name, tensor in named.items()})
    for name, ours in histograms.of_tensors(named).items():
        assert theirs[name][:2] == ours[:2] and sum(theirs[name][2:]) == sum(ours[2:]) == int(name)
        assert sum(abs(a - b) for a, b in zip(theirs[name][2:], ours[2:], strict=True)) <= 8  # at the edges of bins


@pytest.mark.soak
def test_a_stopped_run_has_the_histograms_of_one_that_went_through(tmp_path):
    words = [*RUN_FAULTY, "wandb.watch=all", "wandb.watch_every=3", "wandb.mode=offline"]
    calm, stopped = place(tmp_path / "calm", FAULTY), place(tmp_path / "stopped", FAULTY)
    home = clean_environment(tmp_path, "http://127.0.0.1:9", None)
    train(words, calm, environment=home).ok()
    train(words, stopped, environment=home | {"FAULT": "65 15"}).ok()  # in step 15, which is to be evaluated as well
    assert newest(stopped).name == "step_00000015"
    train(words, stopped, environment=home, name="io1").ok()
    assert (calm / "run/histograms.jsonl").read_text() == (stopped / "run/histograms.jsonl").read_text()
    (segment,) = segments(stopped / "run")
    items = history(inspect(segment))
    watched = [item["_step"] for item in items if "gradients/layers.1.bias.bins" in item]
    assert watched == list(range(3, 61, 3))
    assert all("time/steps_per_second" in item for item in items if "train/loss" in item)  # also of the first start


def _artifact(records, kind):
    (found,) = [record["artifact"] for record in records if record["type"] == "artifact"
                and record["artifact"]["type"] == kind]  # fmt: skip
    return {one["path"]: Path(one["local_path"]) for one in found["manifest"]["contents"]}


def test_the_table_holds_images_and_what_the_model_says_of_them(shown):
    """Beside the model and the data taken up by hand."""
    from PIL import Image

    directory, records, segment = shown
    data = build("data", {"_target_": "launcher.data.sklearn.load_digits", "test": 0.2, "validation": 0.1,
                          "split_seed": 0, "flip": False, "shift": 1, "imbalance": None})  # fmt: skip
    numbers = [len(data.test) * i // 7 for i in range(7)]
    (file,) = (segment / "files/media/table").glob("predictions*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["sample", "image", "predicted", "target", "probability"]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    net.load_state_dict(
        {name.removeprefix("layers."): one for name, one in load_file(newest(directory) / "model.safetensors").items()}
    )
    raw = data.test.inputs[numbers]
    shares, found = net(data.test.prepare(raw)).softmax(1).max(1)
    stored = _artifact(records, "run_table")
    images = json.loads(stored["predictions.table.json"].read_text())
    for i, row in enumerate(table["data"]):
        assert [row[0], *row[2:4]] == [numbers[i], str(found[i].item()), str(data.test.targets[numbers[i]].item())]
        assert row[4] == pytest.approx(shares[i].item(), rel=1e-4)
        picture = np.asarray(Image.open(stored[images["data"][i][1]["path"]]))
        assert np.abs(picture - raw[i, 0].numpy() * (255 / raw.max().item())).max() <= 0.5
    assert all(directory in path.parents for path in stored.values()), "a run directory is complete by itself"


class Photos(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, i):
        return torch.arange(12, dtype=torch.uint8).view(3, 2, 2) * (i + 13), i % 3


class Scores(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3]


def test_colours_from_a_dataset_names_of_classes_and_numbers_in_their_own_unit():
    accelerator = Accelerator(cpu=True)
    part = DatasetSplit(Photos(), prepare=lambda raw: raw.float() / 100)
    data = Data("photos", "classification", (3, 2, 2), 3, part, part, part, ["ant", "bee", "cow"])
    net = Scores().train()
    table = gallery.columns(
        net,
        part,
        data.input_shape,
        Supervised(PerSample(nn.MSELoss()), Outputs.of(data, {"_target_": "torch.nn.BCEWithLogitsLoss"})),
        4,
        3,
        accelerator,
    )
    assert list(table) == ["sample", "image", "predicted", "target", "probability"] and net.training
    assert table["sample"].tolist() == [0, 2, 4, 6] and table["target"].tolist() == ["ant", "cow", "bee", "ant"]
    assert table["predicted"].tolist() == ["cow"] * 4
    np.testing.assert_allclose(
        table["probability"], [1 / (1 + np.exp(-2 * (i + 13) / 100)) for i in (0, 2, 4, 6)], 1e-5
    )
    raw = np.stack([Photos()[i][0].movedim(0, -1).numpy() for i in (0, 2, 4, 6)])
    np.testing.assert_allclose(table["image"], raw * (255 / raw.max()), atol=0.5)

    part = TensorSplit(torch.arange(6.0).view(3, 2), torch.tensor([[0.0], [1.0], [-1.0]]))
    data = Data("numbers", "regression", (2,), 1, part, part, part,
                target_mean=torch.tensor([10.0]).double(), target_std=torch.tensor([4.0]).double())  # fmt: skip
    table = gallery.columns(
        nn.Linear(2, 1),
        part,
        data.input_shape,
        Supervised(PerSample(nn.MSELoss()), Outputs.of(data, {})),
        9,
        2,
        accelerator,
    )
    assert list(table) == ["sample", "predicted", "target"] and table["target"].tolist() == [10, 14, 6]


class Lengths(nn.Module):
    """Scores of two classes: how many tokens are real, and how many there are."""

    def forward(self, batch):
        mask = batch["attention_mask"].float()
        return torch.stack([mask.sum(1), torch.full((len(mask),), float(mask.shape[1]))], 1)


def test_texts_of_any_length_are_padded_for_the_table():
    lengths, targets = [3, 7, 1, 5], torch.tensor([0, 1, 1, 0])
    part = token_split({"input_ids": np.ones(16)}, np.cumsum([0, *lengths]), targets)
    data = Data("texts", "classification", (7,), 2, part, part, part, vocabulary=3)
    task = Supervised(PerSample(nn.CrossEntropyLoss()), Outputs.of(data, {}))
    table = gallery.columns(Lengths(), part, (7,), task, 4, 3, Accelerator(cpu=True))
    assert table["target"].tolist() == ["0", "1", "1", "0"] and table["predicted"].tolist() == ["1"] * 4
    np.testing.assert_allclose(table["probability"], [1 / (1 + np.exp(n - 8)) for n in lengths], 1e-5)


def test_code_and_git_are_what_the_run_was_made_by(shown):
    directory, records, segment = shown
    files = _artifact(records, "code")
    assert files["own.py"].read_text() == CODE
    assert (
        files["launcher/training/trainer.py"].read_bytes() == (REPOSITORY / "launcher/training/trainer.py").read_bytes()
    )
    assert all(name == "own.py" or name.startswith("launcher/") for name in files)
    (state,) = [record["environment"]["git"] for record in records if "git" in record.get("environment", ())]
    assert state["commit"] == _git(directory, "rev-parse", "HEAD") and "example.com/some.git" in state["remote_url"]
    assert '+COLOUR = "teal"' in (segment / "files/diff.patch").read_text()
    logged = [
        path for path in (directory / "run/wandb").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()
    ]
    assert not logged, "a remote's password"


@pytest.mark.soak
def test_off_none_of_it_is_there(tmp_path):
    words = [*(word for word in WORDS if not word.startswith(("wandb", "checkpoint"))), "wandb.mode=offline"]
    train(words, tmp_path, environment=clean_environment(tmp_path / "home", "http://127.0.0.1:9", None)).ok()
    (segment,) = segments(tmp_path / "run")
    records = inspect(segment)
    assert not [record for record in records if record["type"] == "artifact" or "git" in record.get("environment", ())]
    assert not any(name.endswith(".bins") for item in history(records) for name in item)
    assert not (segment / "files/diff.patch").exists() and not (segment / "files/media/table").exists()
    assert [path.name for path in (tmp_path / "run/wandb").iterdir()] == [segment.name]
    assert not (tmp_path / "run/histograms.jsonl").exists()


def test_a_language_has_no_such_table():
    part = TensorSplit(torch.zeros(3, 4).long(), torch.zeros(3, 4).long())
    with pytest.raises(ConfigError, match=r"wandb\.tables: .*language.*Set it to 0"):
        data = Data("text", "language", (4,), 5, part, part, part)
        gallery.check(data, Supervised(PerSample(nn.MSELoss()), Outputs.of(data, {})))
