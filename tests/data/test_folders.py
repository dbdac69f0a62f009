"""Images found in folders, each once."""

import os

import pytest
from data_sources import parts
from folder_cases import folder, pictures

from launcher.core.errors import ConfigError
from launcher.data.image_folder import read_alike


def sizes(data):
    return [len(part) for part in parts(data)]


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


def test_a_folder_without_an_image_is_no_class(tmp_path):
    """It ended the run."""
    root = pictures(tmp_path / "train", {"ant": 9, "cow": 9})
    pictures(root / "val", {"ant": 2})
    plain = folder(root)
    for name in ("train/bee", "train/dog/deep", "val/cow", "val/elk"):
        (root / name).mkdir(parents=True)
    (root / "train/bee/readme.txt").write_text("to come")
    found = folder(root)
    assert found.class_names == ["ant", "cow"] and sizes(found) == sizes(plain) and not plain.notes
    assert [part.dataset.samples for part in parts(found)] == [part.dataset.samples for part in parts(plain)]
    assert found.notes[0].startswith("no classes, as there is no image")
    assert found.notes[0].endswith("in them: train/bee, train/dog")
    assert "1 .txt files, 2 folders without an image" in found.notes[1]


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


def test_left_by_notebooks_and_archives_is_no_class(tmp_path):
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
    assert len(found.split) == 20 and found.labelled


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
