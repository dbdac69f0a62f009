"""A user's own images, as they really lie about: folders with links and leavings, turned, deep, and of any mode."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sources import load, parts
from folder_cases import Image, folder, pictures
from processes import train

from launcher.core.errors import ConfigError
from launcher.data import DatasetSplit
from launcher.data.image_folder import read_image

pytest.importorskip("torchvision")


def test_the_order_of_samples_is_torchvisions(tmp_path):
    from torchvision.datasets import ImageFolder

    pictures(tmp_path / "train", {"b": 3, "a": 2, "a/z": 2, "a/y/deep": 2, "a.b": 2, "B": 1})
    data = folder(tmp_path)
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = sorted(sample for part in parts(data) for sample in part.dataset.samples)
    assert ours == sorted(theirs.samples) and data.class_names == theirs.classes
    from launcher.data.folders import Folders

    assert Folders(tmp_path).images(tmp_path / "train/a") == [path for path, label in theirs.samples if label == 1]


def test_several_frames_are_told_and_files_of_no_bytes_are_named(tmp_path):
    root = pictures(tmp_path / "train", {"ant": 8, "bee": 8})
    frames = [Image.new("RGB", (9, 9), (40 * i, 0, 0)) for i in range(3)]
    for i in range(4):
        frames[0].save(root / f"train/ant/{i}.webp", save_all=True, append_images=frames[1:], lossless=True)
    data = folder(root, test=0.2, validation=0.2)
    assert any("several frames, such as 3: the first is taken" in note for note in data.notes)
    assert np.asarray(read_image(str(root / "train/ant/0.webp"))).max() == 0
    (root / "train/ant/000.png").write_bytes(b"")
    words = ["data=image_folder", "data.root=.", "data.image_size=8", "model=linear", "num_workers=0", "epochs=1"]
    run = train([*words, "hydra.run.dir=run"], tmp_path).wait()
    assert run.status == [2] and "ant/000.png: it has no bytes" in run.err()
    assert "Traceback" not in run.err()


def painted(root: Path, counts: dict[str, int], side: tuple[int, int] = (20, 14)) -> None:
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
    painted(tmp_path / "train", {"ant": 6, "bee": 5, "cat": 4})
    painted(tmp_path / "val", {"bee": 2, "cat": 1})
    painted(tmp_path / "test", {"ant": 2, "cat": 2})
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
    painted(tmp_path / "train", {"ant": 10, "bee": 10})
    data = load("image_folder", root=str(tmp_path), image_size=8)

    def seeded(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return read(data.train, 3)

    assert torch.equal(seeded(1), seeded(1))
    assert len({seeded(seed).sum().item() for seed in range(6)}) > 3
    plain = load("image_folder", root=str(tmp_path), image_size=8, min_scale=1, flip=False)
    assert torch.equal(read(plain.train, 3), read(plain.train, 3))


def test_image_folder_splits_what_has_no_folder(tmp_path):
    painted(tmp_path / "train", {"ant": 20, "bee": 20})
    data = load("image_folder", root=str(tmp_path), image_size=8)
    files = [[path for path, _ in part.dataset.samples] for part in parts(data)]
    assert [len(part) for part in files] == [32, 4, 4]
    assert len({path for part in files for path in part}) == 40
    assert [torch.bincount(part.targets).tolist() for part in parts(data)] == [[16, 16], [2, 2], [2, 2]]
    again = load("image_folder", root=str(tmp_path), image_size=8)
    assert again.test.dataset.samples == data.test.dataset.samples


def test_image_folder_takes_grey_images_and_names_broken_ones(tmp_path):
    from PIL import Image

    painted(tmp_path / "train", {"ant": 4, "bee": 4})
    painted(tmp_path / "test", {"ant": 1})
    painted(tmp_path / "validation", {"ant": 1})
    Image.new("L", (9, 9), 128).save(tmp_path / "test" / "ant" / "001.png")
    (tmp_path / "test" / "ant" / "002.png").write_bytes(b"\x89PNG broken")
    data = load("image_folder", root=str(tmp_path), image_size=8, on_error=None)
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
    refused(r"data\.root: .*train has no folder of a class\. There is no image \(\.jpg.*\) in train/bear\.")
    (tmp_path / "train" / "bear").rmdir()
    painted(tmp_path / "train", {"ant": 6})
    refused(r"train has one class, 'ant'")
    painted(tmp_path / "more", {"bee": 6})
    (tmp_path / "more" / "bee").rename(tmp_path / "train" / "bee")
    painted(tmp_path / "val", {"cow": 1})
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
        "try: load('x', 8, 1.0, 1.0, True, 'none', 0.0, [0]*3, [1]*3, [], [], 0.1, 0.1, 0, None, None)\n"
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
