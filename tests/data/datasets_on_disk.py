"""Datasets in Hugging Face's format, written and read."""

import numpy as np
import pytest
import torch
from options import option

from launcher.batching.stream import in_order
from launcher.config.components import build
from launcher.data import Data

datasets = pytest.importorskip("datasets")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def load(path, **changes) -> Data:
    return build("data", option("data", "huggingface", path=str(path)) | changes)


def every(part, workers=0):
    """All inputs and targets of a part, in order."""
    inputs, targets = zip(*in_order(part, 0, 1, 7, CPU, workers), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def raw(data, inputs):
    """Inputs as the file has them."""
    return (inputs.double() * data.input_std.view(data.input_shape) + data.input_mean.view(data.input_shape)).float()


def pictures(n: int, mode="RGB", side=(6, 5), seed=0):
    from PIL import Image

    random = np.random.RandomState(seed)
    shape = (*side[::-1], 3) if mode == "RGB" else side[::-1]
    return [Image.fromarray(random.randint(256, size=shape).astype(np.uint8), mode) for _ in range(n)]


def table(n=30, seed=0):
    random = np.random.RandomState(seed)
    inputs = random.randn(n, 4).astype(np.float32)
    return inputs, inputs @ random.randn(4, 2) + 5


def prices(n=2000):
    """House prices as they come: whole numbers, nearly all different; and inputs near 10^12."""
    random = np.random.RandomState(0)
    return {"x": (10**12 + random.randint(0, 10**6, n)).tolist(), "price": random.randint(15_000, 500_001, n).tolist()}
