"""Options of conf/ for images, and small folders of them."""

import numpy as np
import pytest
import torch
from options import option

from launcher.config.components import build
from launcher.models.build import without_file
from launcher.training.finetune import begin

transforms = pytest.importorskip("torchvision.transforms.v2")
SMALL = "resnet18"


def make(library, shape=(3, 32, 32), outputs=10, seed=0, **changes):
    pytest.importorskip(library)
    torch.manual_seed(seed)
    settings = option("model", library, **changes)
    model = build("model", without_file(settings), input_shape=shape, num_outputs=outputs)
    begin(model, {"model.checkpoint": settings["checkpoint"]}, outputs, [])
    return model


def theirs(library, seed=0, **arguments):
    torch.manual_seed(seed)
    if library == "timm":
        return pytest.importorskip("timm").create_model(SMALL, **arguments)
    from torchvision.models import get_model

    return get_model(SMALL, weights=None, **arguments)


def folder(root, parts=("train",), side=24):
    image = pytest.importorskip("PIL.Image")
    for part in parts:
        for seed, label in enumerate(("ant", "bee")):
            (root / part / label).mkdir(parents=True)
            for i in range(10):
                pixels = np.random.RandomState(100 * seed + i).randint(0, 256, (side, side, 3))
                image.fromarray(pixels.astype(np.uint8)).save(root / part / label / f"{i}.png")
    return root
