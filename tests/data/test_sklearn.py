"""The data sets that scikit-learn carries, against scikit-learn's own reading."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from data_sources import load, parts

from launcher.core.errors import ConfigError
from launcher.data.splitting import hold_out


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
    rest, test = (i.numpy() for i in hold_out(442, 0.2, 0))
    kept, out = (i.numpy() for i in hold_out(len(rest), 0.1, 0))
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
    rest, tested = hold_out(len(labels), test, 0, labels)
    kept, out = hold_out(len(rest), validation, 0, labels[rest])
    return rest[kept].numpy(), rest[out].numpy(), tested.numpy()


def standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    return preprocessing.StandardScaler().fit(values[train]).transform(values)


def test_sources_import_neither_scikit_learn_nor_torchvision():
    code = (
        "import sys; from launcher.data import sklearn, fashion_mnist, image_folder\n"
        "sklearn.load_digits(0.2, 0.1, 0, False, 0, None); sklearn.load('iris', 0.2, 0.1, 0)\n"
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


def test_prepared_digits_have_mean_0_and_variance_1():
    data = load("digits")
    pixels = torch.cat([part.prepare(part.inputs) for part in parts(data)])
    assert pixels.dtype == torch.float32 and pixels.shape == (1797, 1, 8, 8)
    assert abs(pixels.mean().item()) < 1e-3 and abs(pixels.std().item() - 1) < 1e-3
