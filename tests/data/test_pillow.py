"""Deep and strange images."""

import struct

import numpy as np
import pytest
from folder_cases import Image, folder

from launcher.core.errors import BrokenFile, ConfigError
from launcher.data.image_folder import FolderImages, read_image

pytestmark = pytest.mark.versions


def test_deep_images_keep_their_shades(tmp_path):
    """Pillow alone would make all of a 16-bit image white; nobody knows the range of one of floats."""
    from PIL import Image

    from launcher.data.image_folder import read_image

    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
        np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / f"deep.{suffix}")))[..., 1], ramp >> 8)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    dataset = FolderImages([(str(tmp_path / "float.tiff"), 0)], lambda image: image)
    with pytest.raises(BrokenFile, match=r"float\.tiff .*: its pixels are floats; save it with 8 or 16 bits"):
        dataset[0]


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
    path = tmp_path / f"image.{ {'CMYK': 'tif', 'YCbCr': 'jpg'}.get(mode, 'png') }"
    source.save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.shape == (7, 9, 3) and pixels.dtype == np.uint8
    grey = {"1": (255,) * 3, "L": (90,) * 3, "LA": (90,) * 3, "I;16": (90,) * 3}
    expected = {**grey, "CMYK": (5, 245, 195), "YCbCr": np.asarray(source.convert("RGB"))[3, 4]}.get(mode, (9, 90, 200))
    assert np.abs(pixels[3, 4].astype(int) - expected).max() <= 2
