"""CIFAR against what the files hold."""

import pickle
from hashlib import md5

import numpy as np
import pytest
import torch
from options import option

from launcher.config.components import build
from launcher.core.errors import ConfigError

pytestmark = pytest.mark.versions


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Files of the form of CIFAR's, with the MD5 sums of these in the place of the real ones."""
    from torchvision import datasets

    made = {}
    for classes, kind in ((10, datasets.CIFAR10), (100, datasets.CIFAR100)):
        folder = tmp_path / kind.base_folder
        folder.mkdir()
        made[classes] = []

        def write(name, content, folder=folder):
            (folder / name).write_bytes(pickle.dumps(content))
            return md5((folder / name).read_bytes()).hexdigest()

        sums = {}
        for name, _ in [*kind.train_list, *kind.test_list]:
            images = np.random.RandomState(len(made[classes])).randint(0, 256, (2 * classes, 3072)).astype(np.uint8)
            labels = [i % classes for i in range(2 * classes)]
            sums[name] = write(name, {"data": images, "labels" if classes == 10 else "fine_labels": labels})
            made[classes].append(images)
        names = [f"class {i}" for i in range(classes)]
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], {kind.meta["key"]: names})})
        monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
        monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    return tmp_path, made


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_what_the_files_hold(classes, cifar):
    root, made = cifar
    data = build("data", option("data", f"cifar{classes}", root=str(root), validation=0.3))
    assert (data.name, data.input_shape, data.num_outputs) == (f"cifar{classes}", (3, 32, 32), classes)
    assert data.class_names[3] == "class 3"
    stored = np.concatenate(made[classes][:-1]).reshape(-1, 3, 32, 32)  # red, green, blue, row by row
    together = torch.cat([data.train.inputs, data.validation.inputs]).numpy()
    assert sorted(map(bytes, together)) == sorted(map(bytes, stored))
    np.testing.assert_array_equal(data.test.inputs.numpy(), made[classes][-1].reshape(-1, 3, 32, 32))
    assert data.test.targets.tolist() == [i % classes for i in range(2 * classes)]
    flips = data.train.augment(data.train.inputs, torch.rand(len(data.train), data.train.draws))
    assert flips.dtype == torch.uint8 and flips.shape == data.train.inputs.shape
    grey = torch.tensor([[[[128.0]]]]).expand(1, 3, 1, 1)
    published = {
        10: ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        100: ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    }
    mean, std = (torch.tensor(numbers) for numbers in published[classes])
    expected = (128 / 255 - mean) / std
    torch.testing.assert_close(data.test.prepare(grey).flatten(), expected, rtol=0, atol=2e-3)


def test_cifar_refuses(cifar):
    root, _ = cifar

    def refused(message, **changes):
        with pytest.raises(ConfigError, match=message):
            build("data", option("data", "cifar10", root=str(root)) | changes)

    refused(r"data\.root: None is no directory; .*cifar-10-batches-py", root=None)
    refused(r"data\.root: .*nowhere has no whole cifar-10-batches-py.*data\.download=true", root=str(root / "nowhere"))
    refused(r"data\.classes: 20 is neither 10 nor 100", classes=20)
    refused(r"data\.shift: 32 ", shift=32)
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    refused(r"data\.root: .* has no whole")
    assert not (root / "nowhere").exists()
