"""A run taken up again: predictions, evaluations of other samples and exports, beside plain torch and each other."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from processes import command, rows, summary, train
from safetensors.torch import load_file

pytestmark = pytest.mark.versions

OWN = """
import torch
from launcher.models.mlp import MLP

class Noisy(MLP):
    def forward(self, x):
        return super().forward(x) + torch.rand(x.shape[0], 1)

class Odd(MLP):
    def forward(self, x):
        return super().forward(x) if x.sum().item() != 3.5 else x
"""
KINDS = ["ant", "bee", "cat"]
COMMON = ["model.hidden=[8]", "batch.global_size=16", "threads=1", "optimizer.lr=0.05", "epochs=4", "log_every=5"]


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tell(directory, program, *words):
    """Run a program to its end; what it said."""
    return command(program, words, directory).ok().out()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs on a table of classes, on one of numbers, and on digits; with a moving average in the first."""
    directory = tmp_path_factory.mktemp("saved")
    (directory / "own.py").write_text(OWN)
    random = np.random.RandomState(0)
    x = random.randn(90, 3) * [1, 50, 0.01] + [5, -300, 0]
    kinds = [KINDS[i] for i in (x[:, 0] > 5).astype(int) + (x[:, 1] > -300)]
    texts = [[repr(float(number)) for number in row] for row in x]
    table = [[i, *row, kind] for i, (row, kind) in enumerate(zip(texts, kinds, strict=True))]
    write(directory / "flowers.csv", ["id", "a", "b", "c", "kind"], table)
    prices = 1000 + 40 * x[:, 0] + x[:, 1] + random.randn(90)
    table = [[*row, repr(float(price))] for row, price in zip(texts, prices, strict=True)]
    write(directory / "prices.csv", ["a", "b", "c", "price"], table)
    flowers = ["data=csv", "data.path=flowers.csv", "data.target=kind", "data.drop=[id]"]
    train([*flowers, *COMMON, "ema_decay=0.8", "hydra.run.dir=flowers"], directory, pictures=True).ok()
    prices = ["data=csv", "data.path=prices.csv", "data.target=price", "loss=mse"]
    train([*prices, *COMMON, "hydra.run.dir=prices"], directory, name="io1").ok()
    train([*COMMON, "max_steps=40", "hydra.run.dir=digits"], directory, name="io2").ok()
    return directory


def rows_of_test(directory, name):
    """The rows of a table that the run measured on, as the file has them."""
    from launcher.data.splitting import split_three

    with (directory / f"{name}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    labels = torch.tensor([KINDS.index(row[-1]) for row in rows]) if name == "flowers" else None
    return header, [rows[i] for i in split_three(len(rows), 0.2, 0.1, 0, labels)[2].tolist()]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_predictions_have_the_accuracy_that_evaluate_measures(place, checkpoint):
    tell(place, "evaluate", "run_dir=flowers", f"checkpoint={checkpoint}")
    tell(place, "predict", "run_dir=flowers", "part=test", f"checkpoint={checkpoint}", "output=out.csv")
    found = read(place / "out.csv")
    right = sum(row["predicted"] == row["target"] for row in found)
    measured = json.loads((place / "flowers/evaluation_test.json").read_text())
    assert right / len(found) == measured["metrics"]["accuracy"]
    confusion = [[sum((r["target"], r["predicted"]) == (t, p) for r in found) for p in KINDS] for t in KINDS]
    assert confusion == measured["confusion"]


def test_predictions_are_those_of_plain_torch(place):
    """By hand: the test rows of the file, standardised by NumPy, through the matrices of the checkpoint."""
    _, rows = rows_of_test(place, "flowers")
    every = np.array([row[1:4] for row in csv.reader((place / "flowers.csv").open())][1:], dtype=float)
    tested = np.array([row[1:4] for row in rows], dtype=float)
    record = json.loads((place / "flowers/data.json").read_text())
    assert record["input_mean"] != every.mean(0).tolist(), "by the training part alone"
    x = torch.tensor((tested - record["input_mean"]) / record["input_std"]).float()
    (newest, *_) = sorted((place / "flowers/checkpoints").glob("step_*"), reverse=True)
    w = load_file(newest / "model.safetensors")
    hidden = torch.relu(x @ w["layers.1.weight"].T + w["layers.1.bias"])
    shares = (hidden @ w["layers.3.weight"].T + w["layers.3.bias"]).softmax(1)
    tell(place, "predict", "run_dir=flowers", "part=test", "checkpoint=last", "output=plain.csv")
    for number, (row, share, raw) in enumerate(zip(read(place / "plain.csv"), shares, rows, strict=True)):
        assert [float(row[f"p_{kind}"]) for kind in KINDS] == pytest.approx(share.tolist(), abs=1e-6)
        assert (row["sample"], row["target"]) == (str(number), raw[-1])
        assert row["predicted"] == KINDS[int(share.argmax())]


def test_another_table_is_prepared_as_the_training_run_was(place):
    """Other columns, another order, no target: the same predictions; with the target the same figures, to the bit."""
    header, rows = rows_of_test(place, "flowers")
    write(place / "new.csv", ["c", "note", "b", "a"], [[row[3], "x", row[2], row[1]] for row in rows])
    write(place / "labelled.csv", header, rows)
    tell(place, "predict", "run_dir=flowers", "part=test", "output=part.csv")
    said = tell(place, "predict", "run_dir=flowers", "input=new.csv", "output=new_out.csv")
    assert "18 samples" in said
    part = read(place / "part.csv")
    for row in part:
        row.pop("target")
    assert read(place / "new_out.csv") == part
    tell(place, "evaluate", "run_dir=flowers")
    tell(place, "evaluate", "run_dir=flowers", "input=labelled.csv")
    one, two = (json.loads((place / f"flowers/evaluation_{name}.json").read_text()) for name in ("test", "input"))
    assert one["metrics"] == two["metrics"] and one["confusion"] == two["confusion"] and two["samples"] == 18


def test_a_table_in_another_place_is_the_same_and_another_table_is_refused(place):
    header, rows = rows_of_test(place, "flowers")
    shutil.copy(place / "flowers.csv", place / "moved.csv")
    said = tell(place, "evaluate", "run_dir=flowers", "data.path=moved.csv", "part=train")
    assert "train part, 65 samples" in said
    write(place / "other.csv", header, rows)
    refused = command("evaluate", ["run_dir=flowers", "data.path=other.csv"], place).wait()
    assert refused.status == [2] and "input mean" in refused.err() and "input=FILE_OR_FOLDER" in refused.err()


def test_the_best_is_saved_when_it_is_measured_and_the_newest_stands_in_where_nothing_was(place):
    words = ["model.hidden=[8]", "threads=1", "epochs=3", "scheduler=constant", "optimizer.lr=0.2"]
    train([*words, "checkpoint.every=1000", "eval_every=7", "hydra.run.dir=rare"], place, name="io4").ok()
    best = min((row for row in rows(place / "rare") if "eval/loss" in row), key=lambda row: row["eval/loss"])["step"]
    said = tell(place, "evaluate", "run_dir=rare", "checkpoint=best", "part=validation")
    measured = summary(place / "rare")["best"]["eval/loss"]
    assert f"step_{best:08d}" in said and f"{measured:.4g}" in said
    train([*words, "checkpoint.every=null", "eval_every=7", "hydra.run.dir=once"], place, name="io5").ok()
    run = command("evaluate", ["run_dir=once", "checkpoint=best"], place).ok()
    last = summary(place / "once")["step"]
    assert f"step_{last:08d}" in run.out()
    assert "was not saved" in run.err() or [row["step"] for row in rows(place / "once")][-1] == last


def test_data_that_has_grown_is_said_to_be_other_data(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    words = ["data=text", "data.path=text.txt", "data.block=16", "model=transformer", "model.width=8", "model.layers=1",
             "model.heads=2", "max_steps=2", "threads=1", "hydra.run.dir=run"]  # fmt: skip
    train(words, tmp_path).ok()
    assert "changed" not in command("evaluate", ["run_dir=run"], tmp_path).ok().err()
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 500)
    assert "changed    data, test part: " in command("evaluate", ["run_dir=run"], tmp_path).ok().err()


def test_a_run_in_half_precision_is_measured_by_a_cpu_in_float32(place, tmp_path):
    shutil.copytree(place / "digits", tmp_path / "a=b,c")
    file = tmp_path / "a=b,c/.hydra/config.yaml"
    file.write_text(file.read_text().replace("mixed_precision: 'no'", "mixed_precision: fp16"))
    assert "fp16" in file.read_text()
    for words in (["run_dir=a=b,c", "device=cpu"], ["a=b,c", "device=cpu"]):
        run = command("evaluate", words, tmp_path).ok()
        assert "fp16" in run.err() and "float32" in run.err() and "accuracy" in run.out()
    command("predict", ["run_dir=a=b,c", "device=cpu", "part=test"], tmp_path).ok()


def test_weights_that_no_longer_fit_the_code_are_named_in_a_sentence(place, tmp_path):
    shutil.copytree(place / "digits", tmp_path / "run")
    file = tmp_path / "run/.hydra/config.yaml"
    file.write_text(file.read_text().replace("- 8\n", "- 9\n"))
    run = command("evaluate", ["run"], tmp_path).wait()
    assert run.status == [2] and "no longer fit" in run.err() and "Traceback" not in run.err()


def test_figures_are_told_where_nothing_can_be_written(place, tmp_path):
    shutil.copytree(place / "digits", tmp_path / "run")
    (tmp_path / "run/evaluation_test.json").unlink(missing_ok=True)
    (tmp_path / "run/.evaluation_test.json.new").mkdir()  # which not even root can write a file over
    run = command("evaluate", ["run"], tmp_path).wait()
    assert run.status == [0] and "accuracy" in run.out() and "not written: run/evaluation_test.json" in run.out()
    assert "output=FILE" in run.out() and not run.err()
    command("evaluate", ["run", "output=elsewhere.json"], tmp_path).ok()
    assert json.loads((tmp_path / "elsewhere.json").read_text())["part"] == "test"


def test_a_regression_is_told_in_the_unit_of_its_target(place):
    tell(place, "evaluate", "run_dir=prices", "checkpoint=best")
    tell(place, "predict", "run_dir=prices", "part=test", "output=prices_out.csv")
    found = read(place / "prices_out.csv")
    _, rows = rows_of_test(place, "prices")
    assert [float(row["target"]) for row in found] == pytest.approx([float(row[-1]) for row in rows], rel=1e-6)
    error = np.mean([abs(float(row["predicted"]) - float(row["target"])) for row in found])
    measured = json.loads((place / "prices/evaluation_test.json").read_text())["metrics"]["mae"]
    kept = np.array([float(row["price"]) for row in read(place / "prices.csv")])
    assert error == pytest.approx(measured, rel=1e-5) and 0.01 * kept.std() < measured < 3 * kept.std()
    write(place / "unpriced.csv", ["c", "b", "a"], [[row[2], row[1], row[0]] for row in rows])
    tell(place, "predict", "run_dir=prices", "input=unpriced.csv", "output=unpriced_out.csv")
    assert [r["predicted"] for r in read(place / "unpriced_out.csv")] == [r["predicted"] for r in found]


@pytest.mark.soak
def test_images_in_folders_and_lists(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for part, count in (("train", 12), ("test", 7)):
        for label, kind in enumerate(("cat", "dog")):
            (tmp_path / "images" / part / kind).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.RandomState(100 * label + i).randint(0, 150, (30, 40, 3)).astype(np.uint8)
                pixels[..., label] += 60
                image.fromarray(pixels).save(tmp_path / f"images/{part}/{kind}/{i}.png")
    words = ["data=image_folder", "data.root=images", "data.image_size=16", "model=cnn", "num_workers=0", "epochs=3"]
    train([*words, "batch.global_size=8", "threads=1", "hydra.run.dir=run"], tmp_path).ok()
    quick = ["run_dir=run", "num_workers=0"]
    tell(tmp_path, "evaluate", *quick, "checkpoint=best")
    tell(tmp_path, "predict", *quick, "part=test", "output=part.csv")
    tell(tmp_path, "predict", *quick, "input=images/test", "output=folder.csv")
    part, folder = read(tmp_path / "part.csv"), read(tmp_path / "folder.csv")
    assert (
        sum(r["predicted"] == r["target"] for r in part) / 14
        == (json.loads((tmp_path / "run/evaluation_test.json").read_text())["metrics"]["accuracy"])
    )
    for one, other in zip(part, folder, strict=True):
        assert one | {"sample": ""} == other | {"sample": ""}
    assert folder[0]["sample"] == "images/test/cat/0.png"
    (tmp_path / "loose").mkdir()
    shutil.copy(tmp_path / "images/test/dog/3.png", tmp_path / "loose/x.png")
    (tmp_path / "list.txt").write_text("loose/x.png\nimages/test/cat/0.png\n")
    tell(tmp_path, "predict", *quick, "input=list.txt", "output=list.csv")
    listed = read(tmp_path / "list.csv")
    assert "target" not in listed[0] and [row["sample"] for row in listed] == ["loose/x.png", "images/test/cat/0.png"]
    by_file = {row["sample"]: row["p_dog"] for row in folder}
    wanted = [by_file["images/test/dog/3.png"], by_file["images/test/cat/0.png"]]
    assert [float(row["p_dog"]) for row in listed] == pytest.approx([float(share) for share in wanted], abs=1e-6)
    # A file that is no image, found by the process itself and by one that loads for it.
    (tmp_path / "loose/broken.png").write_bytes(b"no image")
    (tmp_path / "loose/cut.png").write_bytes((tmp_path / "loose/x.png").read_bytes()[:400])
    for program, workers, broken in (("predict", 0, "broken"), ("predict", 1, "cut"), ("export", 0, "cut")):
        (tmp_path / "list.txt").write_text(f"loose/x.png\nloose/{broken}.png\n")
        words = ["run_dir=run", f"num_workers={workers}", "input=list.txt", "output=broken_out"]
        run = command(program, words, tmp_path).wait(90)
        assert run.status == [2] and run.err().startswith(f"error: loose/{broken}.png is no image"), run.err()
        assert run.err().count("\n") == 1 and not list(tmp_path.glob("*broken_out*")), run.err()


# What a person writes, and what the answer must hold.
WRONG = {
    "unknown setting": ("predict", ["run_dir=flowers", "inptu=new.csv"], ["inptu", "Did you mean input?"]),
    "no run named": ("predict", ["part=test"], ["run_dir is missing"]),
    "no run there": ("predict", ["run_dir=nowhere", "part=test"], ["run_dir=nowhere", "no such directory"]),
    "no input": ("predict", ["run_dir=flowers"], ["input, part", "part=test"]),
    "no file": ("predict", ["run_dir=flowers", "input=gone.csv"], ["input", "gone.csv"]),
    "a column less": ("predict", ["run_dir=prices", "input=few.csv"], ["few.csv", "no column 'b'", "a, x"]),
    "a class more": ("predict", ["run_dir=flowers", "input=cow.csv"], ["line 2", "'cow'", "ant, bee, cat"]),
    "no reader": ("predict", ["run_dir=digits", "input=flowers.csv"], ["digits", "part=test"]),
    "no place": ("predict", ["run_dir=flowers", "part=test", "output=no/where.csv"], ["output=no/where.csv"]),
    "no checkpoint": ("predict", ["run_dir=flowers", "part=test", "checkpoint=7"], ["checkpoint=7", "There are: last"]),
    "unknown part": ("evaluate", ["run_dir=flowers", "part=tset"], ["part=tset", "test"]),
    "no such source setting": ("evaluate", ["run_dir=flowers", "data.paht=x"], ["data.paht", "path"]),
    "no targets": ("evaluate", ["run_dir=flowers", "input=bare.csv"], ["bare.csv", "no true targets"]),
    "unknown format": ("export", ["run_dir=flowers", "format=onxx"], ["format=onxx", "onnx"]),
    "a place taken": ("export", ["run_dir=flowers", "output=digits"], ["output=digits", "something in it"]),
    "no format": ("export", ["run_dir=flowers", "format=[]"], ["format=[]", "onnx"]),
    "a place that takes no directory": ("export", ["run_dir=flowers", "output=/proc/x"], ["output=/proc/x"]),
    "a place that takes no file": ("predict", ["run_dir=flowers", "part=test", "output=/proc/x"], ["output=/proc/x"]),
    "settings that are none": ("evaluate", ["run_dir=garbled"], ["garbled", ".hydra/config.yaml"]),
    "a record that is none": ("predict", ["run_dir=emptied", "part=test"], ["emptied", "data.json", "facts"]),
    "no run to repeat": ("rerun", ["nowhere"], ["run_dir=nowhere"]),
    "misspelt flag": ("rerun", ["flowers", "dryrun=true"], ["dryrun", "Did you mean dry_run?"]),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_gets_one_clear_answer(what, place):
    program, words, expected = WRONG[what]
    write(place / "few.csv", ["a", "x"], [[1, 2]])
    write(place / "cow.csv", ["a", "b", "c", "kind"], [[1, 2, 3, "cow"]])
    write(place / "bare.csv", ["a", "b", "c"], [[1, 2, 3]])
    for name, file, text in (("garbled", ".hydra/config.yaml", ": : ["), ("emptied", "data.json", "{}")):
        shutil.copytree(place / "flowers", place / name, dirs_exist_ok=True)
        (place / name / file).write_text(text)
    before = sorted(str(path) for path in place.rglob("*") if "io" not in path.parts)
    run = command(program, words, place, name="io").wait()
    assert run.status == [2] and run.err().startswith("error: ") and "Traceback" not in run.err(), run.err()
    for text in expected:
        assert text in run.err(), run.err()
    assert sorted(str(path) for path in place.rglob("*") if "io" not in path.parts) == before


@pytest.mark.parametrize("program", ["evaluate", "predict", "export", "rerun"])
def test_help_names_every_setting(program, place):
    said = tell(place, program, "--help")
    assert f"launcher {program}" in said and "run_dir: ???" in said


# Exports


def weights(place, name):
    (newest, *_) = sorted((place / name / "checkpoints").glob("step_*"), reverse=True)
    return load_file(newest / "model.safetensors")


@pytest.mark.parametrize("form", ["safetensors", "torch_export", "onnx"])
def test_an_export_gives_what_the_model_gives(form, place, tmp_path):
    if form == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    out = tmp_path / "model"
    said = tell(place, "export", "run_dir=flowers", f"format={form}", "checkpoint=last", f"output={out}")
    assert "differs by at most" in said and "on 18 samples" in said
    assert not list(tmp_path.glob(".making-*"))
    w = weights(place, "flowers")
    for n in (1, 2, 5):  # any batch
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
        hidden = torch.relu(x @ w["layers.1.weight"].T + w["layers.1.bias"])
        wanted = hidden @ w["layers.3.weight"].T + w["layers.3.bias"]
        if form == "safetensors":
            stored = load_file(out / "model.safetensors")
            assert stored.keys() == w.keys() and all(torch.equal(stored[name], w[name]) for name in w)
            break
        if form == "torch_export":
            found = torch.export.load(out / "model.pt2").module()(x)
        else:
            session = onnxruntime.InferenceSession(out / "model.onnx")
            found = torch.from_numpy(session.run(None, {"inputs": x.numpy()})[0])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    metadata = json.loads((out / "metadata.json").read_text())
    (entry,) = metadata["files"].values()
    assert entry["format"] == form and entry["max_abs_difference"] <= metadata["tolerance"]
    assert metadata["class_names"] == KINDS and metadata["input_shape"] == [3] and metadata["moving_average"]
    assert metadata["normalisation"]["mean"] == json.loads((place / "flowers/data.json").read_text())["input_mean"]
    run = (place / "flowers/.hydra/config.yaml").read_text()
    assert (out / "config.yaml").read_text() == run.partition("\n")[2], "all but the version of its schema"


def test_the_card_says_what_the_record_says(place, tmp_path):
    tell(place, "export", "run_dir=flowers", "checkpoint=last", f"output={tmp_path / 'model'}")
    card = (tmp_path / "model/README.md").read_text()
    final = summary(place / "flowers")["final"]
    for text in (
        "# MLP on table", "ant, bee, cat", "65 train, 7 validation, 18 test", "59 parameters", "moving average",
        f"| test/accuracy | {final['test/accuracy']:.6g} |", "torch.optim.SGD", "lr 0.05", "curves.png",
        "optimizer.lr=0.05", torch.__version__.partition("+")[0], "these weights",
    ):  # fmt: skip
        assert text in card, f"{text}\n{card}"
    assert (tmp_path / "model/curves.png").read_bytes() == (place / "flowers/curves.png").read_bytes()


def test_the_code_of_a_card_runs(place, tmp_path):
    out = tmp_path / "model"
    tell(place, "export", "run_dir=flowers", "format=[safetensors,torch_export]", "checkpoint=last", f"output={out}")
    blocks = (out / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    x, results = torch.randn(4, 3), []
    for block in blocks:
        code = block.partition("```")[0]
        for name in ("config.yaml", "model.safetensors", "model.pt2"):
            code = code.replace(f'"{name}"', repr(str(out / name)))
        names = {"inputs": x}
        exec(code, names)
        results.append(names["outputs"])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("net", "expected"), [("Noisy", "more than tolerance=0.0001"), ("Odd", "cannot take Odd")])
def test_what_does_not_match_or_cannot_be_traced_is_not_written(net, expected, place, tmp_path):
    shutil.copy(place / "own.py", tmp_path)
    words = [f"model._target_=own.{net}", *COMMON, "max_steps=3", "hydra.run.dir=run"]
    train(words, tmp_path).ok()
    run = command("export", ["run_dir=run", "format=torch_export", "checkpoint=last"], tmp_path).wait()
    assert run.status == [2] and expected in run.err(), run.err()
    assert not (tmp_path / "run/export").exists() and not list((tmp_path / "run").glob(".making*"))


def test_without_onnx_it_says_how_to_install_it(place, tmp_path):
    # A directory ahead on the path stands for an installation whose onnx does not import.
    (tmp_path / "onnx.py").write_text("raise ImportError('not here')")
    for name in ("flowers", "flowers.csv"):
        (tmp_path / name).symlink_to(place / name)
    run = command("export", ["run_dir=flowers", "format=onnx", "output=model"], tmp_path).wait()
    assert run.status == [2] and "pip install 'hydra-accelerate-launcher[export]'" in run.err(), run.err()
