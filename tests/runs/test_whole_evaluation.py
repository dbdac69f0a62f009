"""After a run, on the whole test part: exports and predictions beside the model in plain torch, and evaluate.py."""

import csv
import json

import numpy as np
import pytest
import torch
from processes import command, train
from torch.nn.functional import cross_entropy

from launcher.run import provenance, saved

QUICK = ["threads=1", "max_steps=30", "optimizer.lr=0.02", "log_every=10", "hydra.run.dir=run"]
SIZES = {"image": 46, "table": 80, "text": 75}


def make(place, kind):
    """Data of a kind, and the words of a run on it."""
    random = np.random.RandomState(0)
    if kind == "image":
        image = pytest.importorskip("PIL.Image")
        pytest.importorskip("torchvision")
        for part, count in (("train", 20), ("test", 23)):
            for label, name in enumerate(("cat", "dog")):
                (place / "images" / part / name).mkdir(parents=True)
                for i in range(count):
                    pixels = random.randint(0, 200, (30, 40, 3)).astype(np.uint8)
                    pixels[..., label] += 25
                    image.fromarray(pixels).save(place / f"images/{part}/{name}/{i}.png")
        return ["data=image_folder", "data.root=images", "data.image_size=16", "model=resnet", "model.width=8",
                "model.depth=8", "num_workers=0", "batch.global_size=8"]  # fmt: skip
    if kind == "table":
        x = random.randn(400, 3)
        with open(place / "table.csv", "w", newline="") as file:
            rows = [[*row, "ab"[int(sum(row) + random.randn() > 0)]] for row in x.tolist()]
            csv.writer(file).writerows([["p", "q", "r", "kind"], *rows])
        return ["data=csv", "data.path=table.csv", "data.target=kind", "model.hidden=[16]", "batch.global_size=32"]
    (place / "text.txt").write_bytes(bytes(random.choice(list(b"abcab "), 24_000).astype(np.uint8)))
    return ["data=text", "data.path=text.txt", "data.cache=cache", "data.block=16", "model=transformer",
            "model.width=16", "model.layers=2", "model.heads=2", "optimizer=adamw", "batch.global_size=16"]  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["image", "table", "text"])
def test_every_export_and_the_predictions_are_the_model_on_all_that_evaluate_measured(kind, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    train([*make(tmp_path, kind), *QUICK], tmp_path).ok(300)
    command("evaluate", ["run_dir=run", "checkpoint=last", "num_workers=0"], tmp_path).ok(120)
    evaluated = json.loads((tmp_path / "run/evaluation_test.json").read_text())
    words = ["run_dir=run", "checkpoint=last", "format=[safetensors,torch_export,onnx]", "output=model"]
    said = command("export", [*words, "num_workers=0"], tmp_path).ok(300).out()
    assert said.count(f"on {SIZES[kind]} samples") == 3, said

    # The whole test part at once, through each form of the model.
    monkeypatch.chdir(tmp_path)
    path, run = saved.open_run("run")
    record = provenance.read_data(path)
    part = saved.own_data(run, {}, record).test
    if kind == "image":
        inputs, targets = torch.utils.data.default_collate([part.dataset[i] for i in range(len(part))])
    else:
        inputs, targets = part.inputs[:], part.targets[:]
    inputs = inputs if part.prepare is None else part.prepare(inputs)
    model = saved.load_model(run, record["facts"], saved.choose_checkpoint(path, "last").path).eval()
    session = onnxruntime.InferenceSession(tmp_path / "model/model.onnx")
    with torch.no_grad():
        wanted = model(inputs)
        given = inputs.numpy()
        found = {
            "torch_export": torch.export.load(tmp_path / "model/model.pt2").module()(inputs),
            "onnx": torch.from_numpy(session.run(None, {session.get_inputs()[0].name: given})[0]),
        }
    assert evaluated["samples"] == len(inputs) == SIZES[kind]
    right = (wanted.argmax(-1) == targets).double().mean()
    assert evaluated["metrics"]["accuracy"] == pytest.approx(right.item())
    loss = cross_entropy(wanted.flatten(0, -2), targets.flatten().long())
    assert evaluated["metrics"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, outputs in found.items():
        torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-4, msg=name)
    if kind == "text":
        refused = command("predict", ["run_dir=run", "part=test"], tmp_path).wait()
        assert refused.status == [2] and "language" in refused.err()
        return
    command("predict", ["run_dir=run", "checkpoint=last", "part=test", "num_workers=0"], tmp_path).ok(120)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shares = [[float(row[f"p_{name}"]) for name in record["class_names"]] for row in rows]
    torch.testing.assert_close(torch.tensor(shares), wanted.softmax(1), rtol=1e-4, atol=1e-5)
    assert sum(row["predicted"] == row["target"] for row in rows) / len(rows) == evaluated["metrics"]["accuracy"]
