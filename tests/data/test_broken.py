"""Image files that cannot be read, found at the start."""

import os
import shutil
import zlib

import numpy as np
import pytest
from data_sources import parts
from folder_cases import Image, folder, pictures

from launcher.core.errors import ConfigError
from launcher.data import broken

pytest.importorskip("torchvision")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/launcher"


def huge() -> bytes:
    """A PNG of few bytes that says of itself that it has 400 million pixels."""

    def piece(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    head = (20000).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", zlib.compress(b"")) + piece(b"IEND", b"")


def spoil(place):
    """Files of every broken kind; the words that tell of each."""
    noise = np.random.RandomState(5).randint(0, 256, (60, 60, 3)).astype(np.uint8)
    for ending in ("jpg", "png", "bmp", "webp"):
        Image.fromarray(noise).save(place / f"cut.{ending}")
        whole = (place / f"cut.{ending}").read_bytes()
        (place / f"cut.{ending}").write_bytes(whole[: len(whole) * 2 // 3])
    (place / "empty.jpg").write_bytes(b"")
    (place / "page.jpg").write_text("<html><body>404</body></html>")
    (place / "huge.png").write_bytes(huge())
    Image.fromarray(np.zeros((5, 5), np.float32)).save(place / "floats.tif")
    Image.fromarray(np.zeros((5, 5), np.int32)).save(place / "integers.tif")
    words = {f"cut.{ending}": "" for ending in ("jpg", "png", "bmp", "webp")}
    return words | {"empty.jpg": "no bytes", "page.jpg": "cannot identify", "huge.png": "400000000 pixels",
                    "floats.tif": "floats", "integers.tif": "32-bit integers"}  # fmt: skip


def test_every_kind_is_listed_or_left_out(tmp_path):
    root = pictures(tmp_path / "images/train", {"ant": 12, "bee": 12})
    pictures(tmp_path / "images/train", {"ant": 12, "bee": 12}, "jpg")
    plain = folder(root)
    assert not plain.notes
    words = spoil(root / "train/ant")
    with pytest.raises(
        ConfigError, match=r"data\.root: 9 of 57 images .* cannot be read; .*data\.on_error=skip"
    ) as told:
        folder(root)
    lines = str(told.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in lines] == sorted(str(root / "train/ant" / name) for name in words)
    for line, (_, word) in zip(lines, sorted(words.items()), strict=True):
        assert word in line
    skipped = folder(root, on_error="skip")
    assert [part.dataset.samples for part in parts(skipped)] == [part.dataset.samples for part in parts(plain)]
    (note,) = skipped.notes
    assert "9 of 57 images" in note and "left out" in note
    for n in range(5):
        shutil.copy(root / "train/ant/page.jpg", root / f"train/bee/{n}.jpg")
    with pytest.raises(ConfigError, match=r"14 of 62[\s\S]*and 4 more$"):
        folder(root)
    assert len(folder(root, on_error=None).train) > len(skipped.train)
    with pytest.raises(ConfigError, match=r"data\.on_error: 'go' is unknown"):
        folder(root, on_error="go")


def test_nothing_left_of_a_class_or_split_is_an_error(tmp_path):
    root = pictures(tmp_path / "images/train", {"ant": 9, "bee": 9, "cow": 1})
    (root / "train/cow/000.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="no image of the class 'cow' of train can be read"):
        folder(root, on_error="skip")
    shutil.rmtree(root / "train/cow")
    pictures(root / "test", {"ant": 1})
    (root / "test/ant/000.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="no image of the split test can be read"):
        folder(root, on_error="skip")


def test_what_was_whole_is_read_again_only_when_it_changes(tmp_path, cache, monkeypatch):
    root = pictures(tmp_path / "images/train", {"ant": 12, "bee": 12})
    files = sorted(os.listdir(root / "train/ant"))
    read, real = [], broken.reason_against
    monkeypatch.setattr(broken, "reason_against", lambda path: (read.append(path), real(path))[1])
    folder(root)
    assert len(read) == 24
    folder(root)
    assert len(read) == 24
    assert sorted(os.listdir(root / "train/ant")) == files and len(list(cache.glob("*.npy"))) == 1
    (root / "train/ant/003.png").write_bytes(b"gone")
    for count in (25, 26):  # what is broken is read each time
        with pytest.raises(ConfigError, match=r"003\.png"):
            folder(root)
        assert len(read) == count
    (memory,) = cache.glob("*.npy")
    memory.write_bytes(b"no numbers")
    assert len(folder(root, on_error="skip").train) and len(read) == 50


def test_without_a_place_to_remember_all_are_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not folder(pictures(tmp_path / "images/train", {"ant": 12, "bee": 12})).notes
