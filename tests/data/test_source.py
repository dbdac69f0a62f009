"""Data sources: compared with scikit-learn's and torchvision's own readers, and with plain loops."""

import csv as reader
import gzip
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from options import option

from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.data.fashion_mnist import SHAPES
from launcher.data.images import FlipAndShift, Standardise, long_tail
from launcher.data.source import split

CONF = Path(__file__).parents[2] / "conf" / "data"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
FASHION = Path("/usr/share/datasets/fashion-mnist")
needs_fashion = pytest.mark.skipif(
    not (FASHION / "train-images-idx3-ubyte.gz").exists(), reason="Fashion-MNIST is not installed"
)


def load(name: str, **changes) -> Data:
    return build("data", option("data", name, **changes))


def parts(data: Data) -> list:
    return [data.train, data.validation, data.test]


class Open(torch.nn.Linear):
    """A constructor that names facts and takes anything else as well."""

    def __init__(self, in_features, num_classes, width=8, **others):
        super().__init__(in_features, num_classes)


def test_facts_reach_what_names_them_whatever_else_it_takes():
    model = build("model", {"_target_": f"{__name__}.Open", "depth": 3}, in_features=4, num_classes=2, in_channels=1)
    assert model.weight.shape == (2, 4)


@pytest.mark.parametrize("targets", [[1, 2, 3], [-1, 0, 1], [[0.0, 1.0]] * 3, [0.0, 1.0, 2.0]])
def test_targets_that_are_no_classes_are_refused_in_a_sentence(targets):
    part = TensorSplit(torch.zeros(3, 2), torch.tensor(targets))
    with pytest.raises(ConfigError, match="none of its 3 classes: give int64 labels"):
        Data("own", "classification", (2,), 3, part, part, part).class_counts  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_first_line_of_each_option_says_how_to_pick_it(name):
    first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and f": data={name}" in first


# Splits


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3333, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("stratified", [False, True])
def test_split_covers_each_sample_once(fraction, stratified):
    labels = torch.arange(100) % 7 if stratified else None
    kept, out = split(100, fraction, 3, labels)
    assert sorted(kept.tolist() + out.tolist()) == list(range(100))
    assert kept.tolist() == sorted(kept.tolist()) and out.tolist() == sorted(out.tolist())
    if not stratified:
        assert len(out) == min(max(1, round(100 * fraction)), 99)


def test_split_is_a_function_of_its_arguments():
    labels = torch.arange(50) % 3
    torch.manual_seed(1)
    first = split(50, 0.2, 5, labels)
    torch.manual_seed(2)
    again = split(50, 0.2, 5, labels)
    other = split(50, 0.2, 6, labels)
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])
    # Fixed for ever: what a run was trained on must not change with a version of NumPy, torch or this project.
    assert split(10, 0.3, 0)[1].tolist() == [2, 4, 8]


@pytest.mark.parametrize("seed", range(5))
def test_split_gives_each_class_its_share(seed):
    counts = [1, 2, 3, 10, 55, 200]
    labels = torch.cat([torch.full((c,), i) for i, c in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    kept, out = split(len(labels), 0.25, seed, labels)
    held = torch.bincount(labels[out], minlength=6)
    assert len(out) == round(0.25 * sum(counts))
    for count, here in zip(counts, held.tolist(), strict=True):
        assert abs(here - 0.25 * count) < 1 + 0.25
        assert here < count
    assert torch.bincount(labels[kept]).min() >= 1


def test_split_agrees_with_scikit_learn_on_the_size_of_each_class():
    model_selection = pytest.importorskip("sklearn.model_selection")
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    _, theirs = model_selection.train_test_split(labels.numpy(), test_size=20, stratify=labels.numpy())
    _, ours = split(100, 0.2, 0, labels)
    assert torch.bincount(labels[ours]).tolist() == np.bincount(theirs).tolist() == [12, 6, 2]


# Tables and digits that come with scikit-learn


@pytest.mark.parametrize(
    ("name", "loader", "shape", "outputs"),
    [("digits", "load_digits", (1, 8, 8), 10), ("iris", "load_iris", (4,), 3), ("wine", "load_wine", (13,), 3)],
)
def test_shipped_classes_are_those_of_scikit_learn(name, loader, shape, outputs):
    theirs = getattr(pytest.importorskip("sklearn.datasets"), loader)()
    data = load(name)
    assert (data.task, data.input_shape, data.num_outputs) == ("classification", shape, outputs)
    assert data.class_names == [str(c) for c in theirs.target_names]
    n = len(theirs.target)
    assert [len(part) for part in parts(data)] == sizes(n, 0.2, 0.1)
    assert data.class_counts.tolist() == np.bincount(data.train.targets, minlength=outputs).tolist()
    train, validation, test = indices(theirs.target, 0.2, 0.1)
    flat = theirs.data if name == "digits" else standardised(theirs.data, train)
    for part, at in zip(parts(data), (train, validation, test), strict=True):
        ours = part.inputs.flatten(1).double().numpy()
        np.testing.assert_allclose(ours, flat[at], rtol=1e-5, atol=1e-6)
        assert part.targets.tolist() == theirs.target[at].tolist()
        assert part.targets.dtype == torch.int64


def test_diabetes_is_standardised_by_the_training_part():
    theirs = pytest.importorskip("sklearn.datasets").load_diabetes(scaled=False)
    data = load("diabetes")
    assert (data.task, data.input_shape, data.num_outputs) == ("regression", (10,), 1)
    rest, test = (i.numpy() for i in split(442, 0.2, 0))
    kept, out = (i.numpy() for i in split(len(rest), 0.1, 0))
    train, validation = rest[kept], rest[out]
    inputs = standardised(theirs.data, train)
    targets = standardised(theirs.target[:, None], train)
    for part, at in zip(parts(data), (train, validation, test), strict=True):
        np.testing.assert_allclose(part.inputs, inputs[at], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(part.targets, targets[at], rtol=1e-4, atol=1e-5)
        assert part.targets.dtype == torch.float64 and part.targets.shape[1:] == (1,)
    back = data.test.targets * data.target_std + data.target_mean
    np.testing.assert_allclose(back[:, 0], theirs.target[test], rtol=1e-5)
    with pytest.raises(ConfigError, match="data=diabetes is a regression"):
        _ = data.class_counts


def sizes(n: int, test: float, validation: float) -> list[int]:
    rest = n - round(test * n)
    return [rest - round(validation * rest), round(validation * rest), round(test * n)]


def indices(target: np.ndarray, test: float, validation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = torch.from_numpy(target).long()
    rest, tested = split(len(labels), test, 0, labels)
    kept, out = split(len(rest), validation, 0, labels[rest])
    return rest[kept].numpy(), rest[out].numpy(), tested.numpy()


def standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    return preprocessing.StandardScaler().fit(values[train]).transform(values)


def test_facts_are_what_constructors_ask_for():
    assert load("digits").facts() == {
        "input_shape": (1, 8, 8),
        "in_features": 64,
        "in_channels": 1,
        "num_outputs": 10,
        "out_features": 10,
        "num_classes": 10,
    }
    assert load("diabetes").facts() == {
        "input_shape": (10,),
        "in_features": 10,
        "num_outputs": 1,
        "out_features": 1,
    }


def test_the_log_gets_one_line_of_sizes_and_no_tensors():
    assert str(load("digits")) == "digits: classification, 1x8x8 to 10; 1294 to train, 144 to validate, 359 to test"


def test_sources_import_neither_scikit_learn_nor_torchvision():
    code = (
        "import sys; from launcher.data import digits, iris, csv, fashion_mnist, image_folder\n"
        "digits.load(0.2, 0.1, 0, False, 0, None); iris.load(0.2, 0.1, 0)\n"
        "print([m for m in ('sklearn', 'torchvision', 'pandas', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": 0}, r"data\.test: 0 .*\(0, 1\)"),
        ({"test": 1.0}, r"data\.test: 1\.0 "),
        ({"validation": -0.1}, r"data\.validation: -0\.1 "),
        ({"validation": "some"}, r"data\.validation: 'some' "),
        ({"split_seed": -1}, r"data\.split_seed: -1 "),
        ({"split_seed": 1.5}, r"data\.split_seed: 1\.5 "),
        ({"flip": 1}, r"data\.flip: 1 "),
        ({"shift": 8}, r"data\.shift: 8 .*\[0, 7\]"),
        ({"shift": 0.5}, r"data\.shift: 0\.5 "),
        ({"imbalance": 0.5}, r"data\.imbalance: 0\.5 .*>= 1"),
    ],
)
def test_digits_refuse_settings_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        load("digits", **changes)


# Preparation, augmentation, imbalance


def test_prepared_digits_have_mean_0_and_variance_1():
    data = load("digits")
    pixels = torch.cat([part.prepare(part.inputs) for part in parts(data)])
    assert pixels.dtype == torch.float32 and pixels.shape == (1797, 1, 8, 8)
    assert abs(pixels.mean().item()) < 1e-3 and abs(pixels.std().item() - 1) < 1e-3


def test_prepare_leaves_the_raw_images_as_they_are():
    for raw in (torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0.0, 255.0]])):
        before = raw.clone()
        result = Standardise(100.0, 50.0)(raw)
        torch.testing.assert_close(result, torch.tensor([[-2.0, 3.1]]))
        assert torch.equal(raw, before)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_augment_equals_a_loop_over_samples(flip, shift):
    if not flip and not shift:
        pytest.skip("nothing to augment")
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (40, 2, 6, 5), dtype=torch.uint8, generator=generator)
    augment = FlipAndShift(flip, shift)
    uniforms = torch.rand(40, augment.draws, generator=generator)
    expected = []
    for image, draws in zip(raw.numpy(), uniforms.tolist(), strict=True):
        if flip and draws[-1] < 0.5:
            image = image[:, :, ::-1]
        if shift:
            down, right = (math.floor(u * (2 * shift + 1)) for u in draws[:2])
            frame = np.zeros((2, 6 + 2 * shift, 5 + 2 * shift), np.uint8)
            frame[:, shift : shift + 6, shift : shift + 5] = image
            image = frame[:, down : down + 6, right : right + 5]
        expected.append(image.copy())
    result = augment(raw, uniforms)
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), np.stack(expected))
    # Each row depends on its own row alone, and the middle draw with no flip leaves the image as it is.
    alone = torch.cat([augment(raw[i : i + 1], uniforms[i : i + 1]) for i in range(40)])
    assert torch.equal(result, alone)
    assert torch.equal(augment(raw, torch.full_like(uniforms, 0.5)), raw)


def test_augment_takes_the_whole_range_of_uniforms():
    raw = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    for shift in range(1, 28):
        for edge in (0.0, 1 - 2**-24):
            assert FlipAndShift(True, shift)(raw, torch.full((2, 3), edge)).shape == raw.shape


def test_draws_are_as_many_as_augment_takes():
    assert [FlipAndShift(*case).draws for case in ((True, 0), (False, 2), (True, 2))] == [1, 2, 3]
    data = load("digits", shift=1)
    assert data.train.draws == 2 and data.train.augment is not None
    assert data.validation.augment is None and data.test.augment is None
    assert load("digits", shift=0).train.augment is None and load("digits", shift=0).train.draws == 0


def test_long_tail_has_the_profile_of_cui_et_al():
    labels = torch.arange(5000) % 10
    stay = long_tail(labels, 100, 0)
    # Their long-tailed profile with factor 100: n mu^i with mu = 100^(-1/9), 500 down to 5.
    assert torch.bincount(labels[stay]).tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert stay.tolist() == sorted(set(stay.tolist()))
    assert torch.equal(long_tail(labels, 1, 0), torch.arange(5000))
    assert torch.bincount(labels[long_tail(labels, 1e9, 0)]).min() == 1


def test_imbalance_thins_the_training_part_alone():
    whole, thin = load("digits"), load("digits", imbalance=20)
    assert torch.equal(whole.test.inputs, thin.test.inputs)
    assert torch.equal(whole.validation.targets, thin.validation.targets)
    ratio = thin.class_counts[0] / thin.class_counts[9]
    assert 18 < ratio < 24 and thin.class_counts[0] == whole.class_counts[0]


# Fashion-MNIST


@needs_fashion
def test_fashion_mnist_is_torchvisions_own(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in FASHION.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    theirs = {part: datasets.FashionMNIST(str(tmp_path), train=part) for part in (True, False)}
    # The same files also where torchvision leaves them, unzipped.
    for data in (load("fashion_mnist"), load("fashion_mnist", root=str(tmp_path))):
        assert [len(part) for part in parts(data)] == [57000, 3000, 10000]
        assert data.class_names == theirs[True].classes
        assert torch.equal(data.test.inputs[:, 0], theirs[False].data)
        assert torch.equal(data.test.targets, theirs[False].targets)
        kept, out = split(60000, 0.05, 0, theirs[True].targets)
        assert torch.equal(data.train.inputs[:, 0], theirs[True].data[kept])
        assert torch.equal(data.train.targets, theirs[True].targets[kept])
        assert torch.equal(data.validation.inputs[:, 0], theirs[True].data[out])
        assert data.train.inputs.dtype == torch.uint8 and data.train.inputs.shape[1:] == (1, 28, 28)
        assert data.class_counts.tolist() == [5700] * 10
    pixels = data.train.prepare(theirs[True].data)
    assert abs(pixels.mean().item()) < 1e-3 and abs(pixels.std().item() - 1) < 1e-3


@needs_fashion
def test_fashion_mnist_loads_in_less_than_a_second():
    load("fashion_mnist")
    used = []
    for _ in range(2):
        start = time.process_time()  # of all threads, whatever else runs here
        load("fashion_mnist")
        used.append(time.process_time() - start)
    assert min(used) < 1.0  # 0.3 s where two cores are free


def test_fashion_mnist_missing_names_both_ways(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root: .*dataset-fashion-mnist.*data\.download=true"):
        load("fashion_mnist", root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.root: None is no directory"):
        load("fashion_mnist", root=None)
    with pytest.raises(ConfigError, match=r"data\.download: 'yes'"):
        load("fashion_mnist", root=str(tmp_path), download="yes")


@pytest.fixture
def mirror():
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args):  # torchvision leaves a first connection unread
            pass

    with Server(("127.0.0.1", 0), partial(Silent, directory=str(FASHION))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@needs_fashion
def test_fashion_mnist_downloads_whole_files_once(tmp_path, monkeypatch, mirror):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [mirror])
    # Debian has zipped the same bytes anew, so that the sums of the zipped files are others.
    sums = [(f"{name}.gz", md5((FASHION / f"{name}.gz").read_bytes()).hexdigest()) for name in SHAPES]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    root = tmp_path / "new" / "place"
    # Two ranks that start together: the second waits for the files of the first.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load("fashion_mnist", root=str(root), download=True), range(2))
    assert torch.equal(first.test.inputs, load("fashion_mnist").test.inputs)
    assert torch.equal(first.train.targets, second.train.targets)
    assert sorted(file.name for file in root.glob("*.gz")) == sorted(file.name for file in FASHION.glob("*.gz"))
    assert not [file for file in root.iterdir() if file.is_dir()]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["file:///nowhere/"])
    load("fashion_mnist", root=str(root), download=True)


def test_fashion_mnist_says_why_a_download_failed(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{tmp_path.as_uri()}/nowhere/"])
    with pytest.raises(ConfigError, match=r"data\.download: could not download Fashion-MNIST into data\.root="):
        load("fashion_mnist", root=str(tmp_path), download=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.download: could not download"):
        load("fashion_mnist", root=str(tmp_path / "file"), download=True)


@needs_fashion
@pytest.mark.parametrize("damage", ["cut", "other", "text", "zeros"])
def test_fashion_mnist_names_the_damaged_file(tmp_path, damage):
    for file in FASHION.glob("*.gz"):
        shutil.copy(file, tmp_path)
    victim = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = victim.read_bytes()
    if damage == "cut":
        victim.write_bytes(content[:1000])
    elif damage == "other":
        shutil.copy(tmp_path / "train-labels-idx1-ubyte.gz", victim)
    elif damage == "text":
        victim.write_bytes(b"<html>not found</html>")
    else:
        victim.write_bytes(gzip.compress(bytes(8 + 10000)))
    with pytest.raises(ConfigError, match=r"data\.root: .*t10k-labels-idx1-ubyte\.gz"):
        load("fashion_mnist", root=str(tmp_path))


# A user's own table


def table(path: Path, header: list, rows: list, delimiter: str = ",") -> str:
    with path.open("w", newline="") as file:
        reader.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


def flowers(path: Path, label=lambda k: "xyz"[k]) -> str:
    rows = [[i, i % 3 + 0.5, -i, label(i % 3)] for i in range(60)]
    return table(path, ["a", "b", "c", "kind"], rows)


def test_csv_with_text_classes(tmp_path):
    data = load("csv", path=flowers(tmp_path / "t.csv"), target="kind")
    assert (data.task, data.input_shape, data.num_outputs) == ("classification", (3,), 3)
    assert data.class_names == ["x", "y", "z"]
    assert [len(part) for part in parts(data)] == [43, 5, 12]
    for part in parts(data):
        # Column b tells the class, and standardising keeps the order of the values.
        assert torch.equal(torch.unique(part.inputs[:, 1], return_inverse=True)[1], part.targets)
        torch.testing.assert_close(part.inputs[:, 0], -part.inputs[:, 2])
    torch.testing.assert_close(data.train.inputs.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.inputs.std(0, correction=0), torch.ones(3))


def test_csv_with_numbers_as_classes(tmp_path):
    data = load("csv", path=flowers(tmp_path / "t.csv", lambda k: [10, 9, -1][k]), target="kind")
    assert data.task == "classification" and data.class_names == ["-1", "9", "10"]


def test_csv_as_a_regression(tmp_path):
    path = table(tmp_path / "t.csv", ["x", "y"], [[i, 3 * i + 0.5] for i in range(50)])
    data = load("csv", path=path, target="y")
    assert (data.task, data.num_outputs, data.class_names) == ("regression", 1, None)
    torch.testing.assert_close(data.test.targets.float(), data.test.inputs, rtol=1e-4, atol=1e-5)
    assert data.train.targets.shape == (35 + 1, 1)
    # Whole numbers of many values are a regression too, and of few one where it is asked for.
    path = table(tmp_path / "u.csv", ["x", "y"], [[i, i] for i in range(50)])
    assert load("csv", path=path, target="y").task == "regression"
    path = table(tmp_path / "v.csv", ["x", "y"], [[i, i % 4] for i in range(50)])
    assert load("csv", path=path, target="y").task == "classification"
    assert load("csv", path=path, target="y", task="regression").num_outputs == 1


def test_csv_of_a_spreadsheet(tmp_path):
    # A byte order mark, semicolons, spaces, quotes, an empty line, CRLF, a column to leave out.
    text = "\ufeffid; a ;b;kind\r\n" + "".join(f'n{i};{i}; {i % 2};"k {i % 2}"\r\n' for i in range(30)) + "\r\n"
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("utf-8"))
    data = load("csv", path=str(path), target="kind", delimiter=";", drop=["id"])
    assert data.input_shape == (2,) and data.class_names == ["k 0", "k 1"]


def test_csv_constant_column_becomes_zero(tmp_path):
    path = table(tmp_path / "t.csv", ["one", "x", "k"], [[0.1, i, i % 2] for i in range(30)])
    data = load("csv", path=path, target="k")
    assert all(part.inputs[:, 0].abs().max() < 1e-6 for part in parts(data))


def edited(path: Path, line: int, text: str | None) -> str:
    flowers(path)
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (7, "1,abc,3,x", r"t\.csv, line 7, column 'b': 'abc' is no number.*data\.drop=\[b\]"),
        (7, "1,,3,x", r"t\.csv, line 7, column 'b': '' is no number; fill it in"),
        (61, "1,2,nan,x", r"t\.csv, line 61, column 'c': 'nan' is not finite"),
        (2, "NA,2,3,x", r"t\.csv, line 2, column 'a': 'NA' is no number; fill it in"),
        (9, "1e400,2,3,x", r"t\.csv, line 9, column 'a': '1e400' is not finite"),
        (5, "1,2,3, ", r"t\.csv, line 5, column 'kind': '' is no target"),
        (5, "1,2,3", r"t\.csv, line 5 has 3 columns, and the first 4"),
        (5, "1,2,3,x,5", r"t\.csv, line 5 has 5 columns"),
        (1, "a,a,c,kind", r"t\.csv has more than one column named 'a'"),
        (1, "a,b,c,label", r"data\.target: .*t\.csv has no column 'kind'; it has: a, b, c, label"),
    ],
)
def test_csv_names_line_and_column(tmp_path, line, text, message):
    with pytest.raises(ConfigError, match=message):
        load("csv", path=edited(tmp_path / "t.csv", line, text), target="kind")


def test_csv_lines_are_those_of_the_file_also_after_gaps(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,k\n1,x\n\n"2",y\n\n\nbad,x\n')
    with pytest.raises(ConfigError, match=r"line 7, column 'a': 'bad'"):
        load("csv", path=str(path), target="k")


def test_csv_refuses_what_is_no_table(tmp_path):
    path = tmp_path / "t.csv"
    for content, message in [
        (b"", r"t\.csv is empty"),
        (b"\n\n", r"t\.csv is empty"),
        (b"a,k\n", r"has a header \(a, k\) and no rows"),
        (b"a,k\n\xff\xfe,1\n", r"no text in UTF-8"),
        (b"k\n1\n2\n", r"no input column beside the target 'k'"),
        (b"a,k\n1,x\n2,y\n", r"2 samples are too few"),
        (b"a,k\n" + b"1,x\n2,y\n3,z\n4,w\n5,v\n", r"each class keeps one to train"),
        (b"a,k\n" + b"1,x\n" * 9, r"data\.target: column 'k' of .* is 'x' in all 9 rows"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load("csv", path=str(path), target="k")
    path.write_text("a,k\n" + "1,2.5\n" * 9)
    with pytest.raises(ConfigError, match=r"data\.target: it is \[2\.5\] in all \d training rows"):
        load("csv", path=str(path), target="k")
    with pytest.raises(ConfigError, match=r"data\.path: cannot read .*gone\.csv: No such file"):
        load("csv", path=str(tmp_path / "gone.csv"), target="k")
    with pytest.raises(ConfigError, match=r"data\.path: cannot read .*: Is a directory"):
        load("csv", path=str(tmp_path), target="k")
    with pytest.raises(ConfigError, match=r"data\.path: None is no file"):
        load("csv", target="k")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, r"data\.target: name the column .*a, b, c, kind"),
        ({"task": "ranking"}, r"data\.task: 'ranking' "),
        ({"task": "regression"}, r"line 2, column 'kind': 'x' is no number"),
        ({"delimiter": ", "}, r"data\.delimiter: ', ' "),
        ({"delimiter": ";"}, r"data\.target: .* it has: a,b,c,kind\."),
        ({"drop": ["d"]}, r"data\.drop: .*no column 'd'"),
        ({"drop": "a"}, r"data\.drop: 'a' is not a list"),
    ],
)
def test_csv_refuses_settings(tmp_path, changes, message):
    path = flowers(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=message):
        load("csv", **({"path": path, "target": "kind"} | changes))


# A user's own images


def pictures(root: Path, counts: dict[str, int], side: tuple[int, int] = (20, 14)) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for label, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True)
        for i in range(count):
            rng = np.random.RandomState(1000 * label + i)
            pixels = rng.randint(0, 256, (side[1], side[0], 3)).astype(np.uint8)
            image.fromarray(pixels).save(root / name / f"{i:03}.png")


def read(part: DatasetSplit, index: int) -> torch.Tensor:
    return part.prepare(part.dataset[index][0][None])[0]


def test_image_folder_is_torchvisions_own(tmp_path):
    pictures(tmp_path / "train", {"ant": 6, "bee": 5, "cat": 4})
    pictures(tmp_path / "val", {"bee": 2, "cat": 1})
    pictures(tmp_path / "test", {"ant": 2, "cat": 2})
    data = load("image_folder", root=str(tmp_path), image_size=8)
    assert (data.input_shape, data.num_outputs, data.class_names) == ((3, 8, 8), 3, ["ant", "bee", "cat"])
    assert [part.targets.tolist() for part in parts(data)] == [
        [0] * 6 + [1] * 5 + [2] * 4,
        [1, 1, 2],
        [0, 0, 2, 2],
    ]
    assert data.class_counts.tolist() == [6, 5, 4]
    from torchvision import datasets, transforms

    reference = transforms.Compose(
        [
            transforms.Resize(round(8 / 0.875)),
            transforms.CenterCrop(8),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    theirs = datasets.ImageFolder(str(tmp_path / "test"), reference)
    for i in range(4):
        torch.testing.assert_close(read(data.test, i), theirs[i][0])
        assert torch.equal(read(data.test, i), read(data.test, i))
        assert data.test.dataset[i][1] == data.test.targets[i]


def test_image_folder_draws_from_the_global_generator(tmp_path):
    pictures(tmp_path / "train", {"ant": 10, "bee": 10})
    data = load("image_folder", root=str(tmp_path), image_size=8)

    def seeded(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return read(data.train, 3)

    assert torch.equal(seeded(1), seeded(1))
    assert len({seeded(seed).sum().item() for seed in range(6)}) > 3
    plain = load("image_folder", root=str(tmp_path), image_size=8, min_scale=1, flip=False)
    assert torch.equal(read(plain.train, 3), read(plain.train, 3))


def test_image_folder_splits_what_has_no_folder(tmp_path):
    pictures(tmp_path / "train", {"ant": 20, "bee": 20})
    data = load("image_folder", root=str(tmp_path), image_size=8)
    files = [[path for path, _ in part.dataset.samples] for part in parts(data)]
    assert [len(part) for part in files] == [32, 4, 4]
    assert len({path for part in files for path in part}) == 40
    assert [torch.bincount(part.targets).tolist() for part in parts(data)] == [[16, 16], [2, 2], [2, 2]]
    again = load("image_folder", root=str(tmp_path), image_size=8)
    assert again.test.dataset.samples == data.test.dataset.samples


def test_image_folder_takes_grey_images_and_names_broken_ones(tmp_path):
    from PIL import Image

    pictures(tmp_path / "train", {"ant": 4, "bee": 4})
    pictures(tmp_path / "test", {"ant": 1})
    pictures(tmp_path / "validation", {"ant": 1})
    Image.new("L", (9, 9), 128).save(tmp_path / "test" / "ant" / "001.png")
    (tmp_path / "test" / "ant" / "002.png").write_bytes(b"\x89PNG broken")
    data = load("image_folder", root=str(tmp_path), image_size=8)
    grey = read(data.test, 1)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(grey, expected[:, None, None].expand(3, 8, 8))
    with pytest.raises(ValueError, match=r"002\.png is no image that can be read"):
        read(data.test, 2)


def test_image_folder_refuses_folders_that_do_not_fit(tmp_path):
    def refused(message: str, **changes) -> None:
        with pytest.raises(ConfigError, match=message):
            load("image_folder", **({"root": str(tmp_path), "image_size": 8} | changes))

    pytest.importorskip("torchvision")
    refused(r"data\.root: None is no directory", root=None)
    refused(r"data\.root: .* has no folder train")
    refused(r"data\.root: there is no directory .*nowhere", root=str(tmp_path / "nowhere"))
    (tmp_path / "train").mkdir()
    refused(r"data\.root: .*train has no folder of a class")
    (tmp_path / "train" / "bear").mkdir()
    refused(r"data\.root: .*train/bear has no image \(\.jpg")
    (tmp_path / "train" / "bear").rmdir()
    pictures(tmp_path / "train", {"ant": 6})
    refused(r"train has one class, 'ant'")
    pictures(tmp_path / "more", {"bee": 6})
    (tmp_path / "more" / "bee").rename(tmp_path / "train" / "bee")
    pictures(tmp_path / "val", {"cow": 1})
    refused(r"val has the class folder 'cow', which .*train does not have; that has: ant, bee")
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val" / "ant").mkdir(parents=True)
    refused(r"val has no images")
    shutil.rmtree(tmp_path / "val")
    for changes, message in [
        ({"image_size": 0}, r"data\.image_size: 0 "),
        ({"crop": 0}, r"data\.crop: 0 .*\(0, 1\]"),
        ({"min_scale": 2}, r"data\.min_scale: 2 "),
        ({"flip": "no"}, r"data\.flip: 'no' "),
        ({"mean": [0.5]}, r"data\.mean: \[0\.5\] "),
        ({"std": [1, 1, 0]}, r"data\.std: "),
        ({"test": 1}, r"data\.test: 1 "),
        ({"validation": 0}, r"data\.validation: 0 "),
    ]:
        refused(message, **changes)


def test_image_folder_without_torchvision_says_how_to_install_it(tmp_path):
    # A directory ahead on the path stands for an installation whose torchvision does not import.
    (tmp_path / "torchvision.py").write_text("raise ImportError('not here')")
    code = (
        "from launcher.data.image_folder import load\n"
        "try: load('x', 8, 1.0, 1.0, True, 'none', 0.0, [0]*3, [1]*3, [], [], 0.1, 0.1, 0, None)\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.stdout.startswith("ConfigError ") and "'hydra-accelerate-launcher[vision]'" in result.stdout


def test_a_part_that_does_not_tell_its_labels_has_no_counts():
    part = DatasetSplit(list(range(3)))
    data = Data("own", "classification", (1,), 2, part, part, part)
    assert len(part) == 3
    with pytest.raises(ConfigError, match="data=own does not tell its labels"):
        _ = data.class_counts
    tensors = TensorSplit(torch.zeros(4, 1), torch.tensor([0, 0, 1, 0]))
    data = Data("own", "classification", (1,), 3, tensors, part, part)
    assert data.class_counts.tolist() == [3, 1, 0]


@pytest.mark.gpu
def test_data_moves_to_the_gpu_where_it_fits_and_gives_the_same_batches(monkeypatch):
    from launcher.batching.plan import plan_batch
    from launcher.batching.stream import of_rank
    from launcher.data import Data, TensorSplit
    from launcher.distributed.process_group import find_ranks

    def made():
        part = TensorSplit(torch.arange(4000, dtype=torch.uint8).view(1000, 4), torch.arange(1000) % 3,
                          prepare=torch.Tensor.float)  # fmt: skip
        return Data("made", "classification", (4,), 3, part, part, part)

    device = torch.device("cuda")
    plan = plan_batch(1000, 16, 1, None, None)
    there, here = made(), made()
    there.move_to(device)
    assert there.train.inputs.device.type == "cuda"
    monkeypatch.setattr("launcher.data.source.free", lambda device: 4000)
    here.move_to(device)
    assert here.train.inputs.device.type == "cpu", "too large for a quarter of what is free"
    batches = [list(of_rank(data.train, plan, 0, find_ranks({}), device, 0).batches(0, 80)) for data in (there, here)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.micros[0].inputs, other.micros[0].inputs)
        assert torch.equal(one.micros[0].targets, other.micros[0].targets)
