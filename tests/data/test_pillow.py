"""Deep and strange images."""

import numpy as np
import pytest

from launcher.core.errors import BrokenFile
from launcher.data.image_folder import FolderImages


def test_deep_images_keep_their_shades(tmp_path):
    """Pillow alone would make all of a 16-bit image white; nobody knows the range of one of floats."""
    from PIL import Image

    from launcher.data.image_folder import read_image

    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
        np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / f"deep.{suffix}")))[..., 1], ramp >> 8)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    dataset = FolderImages([(str(tmp_path / "float.tiff"), 0)], read_image, lambda image: image)
    with pytest.raises(BrokenFile, match=r"float\.tiff .*: its pixels are floats; save it with 8 or 16 bits"):
        dataset[0]
