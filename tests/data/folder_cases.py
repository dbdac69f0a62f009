"""Small folders of images."""

import numpy as np
import pytest
from data_sources import load

Image = pytest.importorskip("PIL.Image")


def pictures(root, counts, suffix="png"):
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.RandomState(1000 * label + i).randint(0, 256, (14, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:03}.{suffix}")
    return root.parent


def folder(root, **changes):
    return load("image_folder", root=str(root), image_size=8, **changes)
