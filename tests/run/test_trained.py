"""Runs read back in Python, beside what `launcher predict` writes of the same samples, and beside plain torch."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from folder_cases import pictures
from processes import REPOSITORY, command, summary, train
from safetensors.torch import load_file
from torch.nn import functional as F

import launcher
from launcher.core.errors import ConfigError

WORDS = ["batch.global_size=8", "threads=1", "optimizer.lr=0.05", "epochs=3", "model.hidden=[8]"]
OWN = "from launcher.models.mlp import MLP\n\nclass Net(MLP):\n    pass\n"
RUNS = {
    "table": (["data=csv", "data.path=table.csv", "data.target=kind", "ema_decay=0.8",
               "model._target_=own_net.Net"], 1),
    "prices": (["data=csv", "data.path=prices.csv", "data.target=price", "loss=mse", "strategy=fsdp"], 2),
    "digits": (["mixed_precision=bf16", "max_steps=30", "eval_every=10"], 1),
    "folder": (["data=image_folder", "data.root=photos", "data.image_size=8", "num_workers=0"], 1),
    "text": (["data=text", "data.path=book.txt", "data.block=16", "model=transformer", "model.width=16",
              "model.heads=2", "model.layers=1", "max_steps=4"], 1),
    "iris": (["data=iris"], 1),
    "words": (["data=brackets", "data.samples=60", "model=encoder", "max_steps=2", "num_workers=0"], 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    (directory / "own_net.py").write_text(OWN)
    random = np.random.RandomState(0)
    x = random.randn(60, 3) * [1, 50, 0.01] + [5, -300, 0]
    for name, target, values in (
        ("table", "kind", np.where(x[:, 0] > 5, "ant", "bee")),
        ("prices", "price", 9e3 + x[:, 0]),
    ):
        with (directory / f"{name}.csv").open("w", newline="") as file:
            rows = [[*map(repr, map(float, row)), value] for row, value in zip(x, values, strict=True)]
            csv.writer(file).writerows([["a", "b", "c", target], *rows])
    pictures(directory / "photos" / "train", {"ant": 12, "bee": 12})
    (directory / "book.txt").write_text("a book of words, read twice. " * 40)
    for number, (name, (words, world)) in enumerate(RUNS.items()):
        base = [word for word in WORDS if name not in ("text", "words") or "hidden" not in word]
        train([*base, *words, f"hydra.run.dir={name}"], directory, world, name=f"io{number}").ok()
    return directory


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    """As in a script that is started there: `own_net` is found in the working directory."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(place, *words):
    """The columns of the file that `launcher predict` writes, but for those that it alone has."""
    command("predict", ["output=out.csv", "threads=1", *words], place, name="io-predict").ok()
    with (place / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0] if name not in ("sample", "target")}


def texts(columns):
    return {n: [f"{v:.9g}" if c.dtype.kind == "f" else str(v) for v in c.tolist()] for n, c in columns.items()}


@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize(("run", "samples"), [("table", "table.csv"), ("folder", "photos/train/ant")])
def test_files_are_predicted_as_by_the_command(run, samples, checkpoint, place):
    model = launcher.load(run, checkpoint=checkpoint)
    expected = written(place, f"run_dir={run}", f"input={samples}", f"checkpoint={checkpoint}")
    assert texts(model.predict(samples)) == expected
    assert (
        model.checkpoint.path.name
        == f"step_{summary(place / run)['best_step' if checkpoint == 'best' else 'step']:08d}"
    )
    scores = model(model.preprocess(samples))
    assert not model.training and [f"{v:.9g}" for v in scores.softmax(1)[:, 1].tolist()] == expected["p_bee"]


def test_numbers_are_in_the_unit_of_the_data_and_of_a_sharded_run(place):
    expected = written(place, "run_dir=prices", "input=prices.csv")["predicted"]
    assert [float(text) for text in expected] == pytest.approx(
        launcher.load("prices").predict("prices.csv")["predicted"]
    )
    assert np.median(launcher.load("prices").predict("prices.csv")["predicted"]) == pytest.approx(9e3, rel=0.01)


@pytest.mark.parametrize("run", ["digits", "iris"])
def test_arrays_are_prepared_as_the_data_source_does(run, place):
    """Of bf16, too: raw samples from scikit-learn's own reader, those of the test split found by the launcher."""
    from sklearn import datasets

    from launcher.data.splitting import split_three

    found = getattr(datasets, f"load_{run}")()
    raw = found.images[:, None].astype(np.uint8) if run == "digits" else found.data
    labels = torch.from_numpy(found.target).long()
    split = launcher.load(run).settings["data"]
    tested = split_three(len(labels), split["test"], split["validation"], split["split_seed"], labels)[2]
    columns = launcher.load(run).predict(raw[tested.numpy()])
    assert texts(columns) == written(place, f"run_dir={run}", "part=test")
    with pytest.raises(ConfigError, match=r"samples: their shape is \[.*\], not \[n, "):
        launcher.load(run).predict(raw[0])


def test_a_frame_is_a_table(place):
    """Columns in another order, more of them, and no target: as the file. And columns by their place, as an array."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv("table.csv")
    model = launcher.load("table")
    expected = texts(model.predict("table.csv"))
    assert texts(model.predict(frame[["c", "kind", "b", "a"]].assign(note="x").drop(columns="kind"))) == expected
    assert texts(model.predict(frame[["a", "b", "c"]].to_numpy())) == expected
    with pytest.raises(ConfigError, match="has no column 'b'"):
        model.predict(frame[["a", "c"]])


def test_a_text_gives_scores_as_plain_torch_does(place):
    model = launcher.load("text", checkpoint="last")
    tokens = model.preprocess("a book of words,")
    assert tokens.tolist() == [list(b"a book of words,")]
    newest = max((place / "text/checkpoints").glob("step_*"))
    with torch.no_grad():
        weights = load_file(newest / "model.safetensors")
        found = torch.func.functional_call(model.model, weights, (tokens,))
        assert torch.equal(model(tokens), found) and found.shape == (1, 16, 256)
        assert F.cross_entropy(found[0, :-1], tokens[0, 1:]) < 6
    with pytest.raises(ConfigError, match="call the model instead"):
        model.predict("a book")


def test_of_padded_tokens_nothing_is_guessed(place):
    """The model takes a dict with a mask, which no array of tokens tells."""
    model = launcher.load("words")
    for samples in ([[1, 2, 3]], torch.ones(2, 40, dtype=torch.int64), "(())"):
        with pytest.raises(ConfigError, match="data=brackets gives the model padded tokens and a mask in a dict"):
            model.predict(samples)
    tokens = torch.tensor([[1, 3, 2, 4]])
    assert model({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "run_dir=nowhere: no run is there"),
        (("digits", "newest"), "checkpoint=newest: must be auto, best, last or a step"),
        (("digits", 31), "checkpoint=31: no such checkpoint"),
        (("digits", "best", "cpx"), "device=cpx: cannot be used here"),
    ],
)
def test_what_is_wrong_is_a_sentence(arguments, said):
    with pytest.raises(ConfigError, match=said):
        launcher.load(*arguments)


def test_what_no_run_is_made_of_is_not_called(place):
    """As by the commands: a directory may be somebody else's."""
    config = place / "iris/.hydra/config.yaml"
    before = config.read_text()
    try:
        config.write_text(before.replace("launcher.models.mlp.MLP", "os.system"))
        with pytest.raises(ConfigError, match=r"os\.system is nothing that a run is made of"):
            launcher.load("iris")
    finally:
        config.write_text(before)


def test_to_import_it_costs_nothing():
    code = (
        "import sys; from launcher import load; assert not {'torch', 'numpy', 'typing'} & set(sys.modules), sys.modules"
    )
    assert subprocess.run([sys.executable, "-S", "-c", code], cwd=REPOSITORY).returncode == 0
