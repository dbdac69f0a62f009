"""A user's own images, as they really lie about: folders with links and leavings, turned, deep, and of any mode."""

import os
import struct

import numpy as np
import pytest
from processes import train
from test_source import load, parts

from launcher.core.errors import ConfigError
from launcher.data.image_folder import read_alike, read_image

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")


def pictures(root, counts, suffix="png"):
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.RandomState(1000 * label + i).randint(0, 256, (14, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:03}.{suffix}")
    return root.parent


def sizes(data):
    return [len(part) for part in parts(data)]


def folder(root, **changes):
    return load("image_folder", root=str(root), image_size=8, **changes)


# What is found


def test_links_are_followed_but_not_in_circles_nor_twice(tmp_path):
    """A loop gave 1,230 samples of 30, with the test images among them."""
    pictures(tmp_path / "a/test", {"ant": 5, "bee": 5})
    root = pictures(tmp_path / "a/train", {"ant": 15})
    pictures(tmp_path / "elsewhere", {"bee": 15})
    os.symlink("../../elsewhere/bee", root / "train/bee")  # a class that lies in another place
    plain = folder(root)
    assert sizes(plain) == [27, 3, 10] and not plain.notes
    for name, target in (("up", ".."), ("top", "../.."), ("self", "."), ("further", "../../..")):
        os.symlink(target, root / "train/ant" / name)
    os.symlink("../ant/000.png", root / "train/ant/again.png")
    os.symlink("nowhere.png", root / "train/bee/lost.png")
    found = folder(root)
    assert sizes(found) == [27, 3, 10]
    assert [p for p, _ in found.train.dataset.samples] == [p for p, _ in plain.train.dataset.samples]
    (note,) = found.notes
    for words in ("4 links to a folder around them", "1 links to what is there already", "1 broken links"):
        assert words in note


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/all", "../../test"),
        ("train/ant/more", "../bee"),
        ("train/ant/one.png", "../../test/ant/000.png"),
        ("train/bee/one.png", "../ant/000.png"),
        ("test/bee/one.png", "../../train/bee/000.png"),
        ("test/bee/all", "../../train/bee"),
    ],
)
def test_what_is_learned_from_is_not_measured_on_by_a_link(link, target, tmp_path):
    pictures(tmp_path / "train", {"ant": 5, "bee": 5})
    pictures(tmp_path / "test", {"ant": 5, "bee": 5})
    os.symlink(target, tmp_path / link)
    with pytest.raises(ConfigError, match=r"data\.root: .* is in .* and, by a link, in .*Remove the link"):
        folder(tmp_path)


def test_what_notebooks_and_archives_leave_is_no_class_and_other_files_are_counted(tmp_path):
    root = pictures(tmp_path / "train", {"ant": 10, "bee": 10, ".ipynb_checkpoints": 3, "__MACOSX": 2, "@eaDir": 1})
    pictures(root / "train", {"ant": 3, "bee": 4}, "gif")
    pictures(root / "train/ant", {".ipynb_checkpoints": 2})
    (root / "train/ant/._000.png").write_bytes(b"a fork of resources")
    (root / "train/ant/Thumbs.db").write_bytes(b"")
    (root / "train/README").write_text("")
    (root / "train/bee/label").write_text("")
    (root / "extra").mkdir()
    data = folder(root)
    assert data.class_names == ["ant", "bee"] and sum(sizes(data)) == 20
    aside, left = data.notes
    assert aside.endswith("the folders extra")
    for words in (
        "7 .gif files",
        "1 .db files",
        "1 files without an ending",
        "5 hidden",
        "1 files outside of the folder",
    ):
        assert words in left, left
    found = read_alike(str(root / "train"), data.class_names, 8, 0.875, [0.5] * 3, [0.5] * 3)
    assert len(found.part) == 20 and found.labelled


@pytest.mark.parametrize("name", ["val", "valid", "Val", "dev", "VALIDATION", "Valid"])
def test_a_folder_to_validate_on_has_many_names(name, tmp_path):
    pictures(tmp_path / "Train", {"ant": 10, "bee": 10})
    pictures(tmp_path / name, {"ant": 3, "bee": 4})
    assert sizes(folder(tmp_path)) == [18, 7, 2]
    both = pictures(tmp_path / "val", {"ant": 1, "bee": 1}) if name != "val" else tmp_path
    if name == "valid":
        assert folder(both).notes == [f"left aside under {tmp_path}: the folders valid"]


def test_folders_of_classes_alone_are_split(tmp_path):
    root = pictures(tmp_path / "photos/all", {"ant": 12, "bee": 12})
    data = folder(root / "all")
    assert sizes(data) == [20, 2, 2] and "has no folder train: its folders are the classes" in data.notes[0]
    files = [path for part in parts(data) for path, _ in part.dataset.samples]
    assert len(set(files)) == 24
    with pytest.raises(ConfigError, match="one class, 'all'; at least two"):
        folder(root)
    (root / "all").rename(root / "train")
    with pytest.raises(ConfigError, match=rf"one class, 'photos'.* Is data\.root={root} meant\?"):
        folder(tmp_path)
    pictures(tmp_path / "other/test", {"ant": 1})
    pictures(tmp_path / "other/ant", {"x": 1})
    with pytest.raises(ConfigError, match="other has no folder train"):
        folder(tmp_path / "other")


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    pictures(tmp_path / "train", {"ant": 5, "bee": 5})
    real = os.scandir

    def scandir(place):
        if str(place).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read all
    with pytest.raises(ConfigError, match=r"data\.root: cannot read .*bee: Permission denied"):
        folder(tmp_path)


def test_the_order_of_samples_is_torchvisions(tmp_path):
    from torchvision.datasets import ImageFolder

    pictures(tmp_path / "train", {"b": 3, "a": 2, "a/z": 2, "a/y/deep": 2, "a.b": 2, "B": 1})
    data = folder(tmp_path)
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = sorted(sample for part in parts(data) for sample in part.dataset.samples)
    assert ours == sorted(theirs.samples) and data.class_names == theirs.classes
    from launcher.data.folders import Folders

    assert Folders(tmp_path).images(tmp_path / "train/a") == [path for path, label in theirs.samples if label == 1]


# What is read


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_taken_as_they_were_held(orientation, tmp_path):
    """A picture that a camera has stored turned, and its tag for how: all eight show the same."""
    upright = np.zeros((6, 4, 3), np.uint8)
    upright[0, 0], upright[0, -1], upright[-1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # What is stored is what these undo, by the standard's own words.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("photo.png", "photo.webp"):
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, lossless=True)
        assert np.array_equal(np.asarray(read_image(str(tmp_path / name))), upright)


def tiff_of_12_bits(values):
    """A TIFF as microscopes write it: 12 bits a pixel, packed, no compression."""
    height, width = values.shape
    rows = []
    for row in values:
        bits = "".join(f"{value:012b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)))
    data = b"".join(rows)
    tags = [(256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 3, height), (279, 4, len(data)), (339, 3, 1)]  # fmt: skip
    data += b"\0" * (len(data) % 2)
    listed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + listed + b"\0" * 4


def test_images_of_12_bits_keep_their_shades(tmp_path):
    values = np.arange(64).reshape(8, 8) * 65
    (tmp_path / "packed.tiff").write_bytes(tiff_of_12_bits(values))
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "packed.tiff")))[..., 0], values >> 4)
    for label in ("ant", "bee"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray((values - i).clip(0).astype(np.uint16)).save(tmp_path / "train" / label / f"{i}.png")
    with pytest.raises(
        ConfigError, match=r"data\.bits: no value of \d+ images of 16 bits .* is above 4\d\d\d.*data\.bits=12"
    ):
        folder(tmp_path)
    path = str(tmp_path / "train/ant/0.png")
    assert np.array_equal(np.asarray(read_image(path, 12))[..., 0], values >> 4)
    assert np.array_equal(np.asarray(read_image(path, 16))[..., 0], values >> 8)
    data = folder(tmp_path, bits=12)
    assert data.reader["bits"] == 12 and folder(tmp_path, bits=16).reader["bits"] == 16
    with pytest.raises(ConfigError, match=r"data\.bits: 8 "):
        folder(tmp_path, bits=8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_any_mode_are_red_green_and_blue(mode, tmp_path):
    colour = {"1": 1, "L": 90, "LA": (90, 30), "CMYK": (250, 10, 60, 0), "I;16": 90 << 8}
    if mode in ("P", "PA"):
        source = Image.new("RGBA" if mode == "PA" else "RGB", (9, 7), (9, 90, 200, 40)[: len(mode) + 2]).quantize(4)
    else:
        source = Image.new(mode, (9, 7), colour.get(mode, (9, 90, 200, 40)[: 4 if mode == "RGBA" else 3]))
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    source.save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.shape == (7, 9, 3) and pixels.dtype == np.uint8
    grey = {"1": (255,) * 3, "L": (90,) * 3, "LA": (90,) * 3, "I;16": (90,) * 3}
    expected = {**grey, "CMYK": (5, 245, 195), "YCbCr": np.asarray(source.convert("RGB"))[3, 4]}.get(mode, (9, 90, 200))
    assert np.abs(pixels[3, 4].astype(int) - expected).max() <= 2


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
    assert run.status in ([1], [2]) and "000.png is no image that can be read" in run.err()
    assert "Traceback" not in run.err()
