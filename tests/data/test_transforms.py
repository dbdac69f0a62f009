"""What torchvision does with images of a folder."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from options import option
from vision_options import folder, transforms

from launcher.batching.keys import AUGMENT, derive
from launcher.batching.loading import SeededDataset
from launcher.batching.stream import in_order
from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.data import Data

pytestmark = pytest.mark.versions

CPU = torch.device("cpu")


def pictures(root, **changes) -> Data:
    return build("data", option("data", "image_folder") | {"root": str(root), "image_size": 16} | changes)


def test_training_images_are_measured_without_augmentation(tmp_path):
    data = pictures(folder(tmp_path), augment="trivial", random_erasing=0.5, min_scale=0.2)
    for workers in (0, 1):
        first, second = (torch.cat([x for x, _ in in_order(data.train, 0, 1, size, CPU, workers)]) for size in (3, 5))
        assert torch.equal(first, second) and len(first) == len(data.train)
    assert not torch.equal(torch.stack([data.train.dataset[i][0] for i in range(len(first))]).float(), first)


def test_imagenet_keeps_its_validation_images_for_the_end(tmp_path):
    root = folder(tmp_path, ("train", "val"))
    settings = option("data", "imagenet", root=str(root), image_size=16, validation=0.1)
    data = build("data", settings)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 20]
    assert all("/val/" in path for path, _ in data.test.dataset.samples)
    assert all("/train/" in path for path, _ in data.validation.dataset.samples)
    both = build("data", settings | {"validation_folders": ["val"]})
    assert [len(part) for part in (both.train, both.validation, both.test)] == [20, 20, 20]
    steps = [type(step).__name__ for step in data.train.dataset.transform.transforms]
    assert steps == ["RandomResizedCrop", "RandomHorizontalFlip", "PILToTensor"]
    assert data.train.dataset.transform.transforms[0].scale == (0.08, 1.0)


LIBRARY = {
    "light": lambda: [transforms.ColorJitter(0.2, 0.2, 0.2)],
    "randaugment": lambda: [transforms.RandAugment()],
    "trivial": lambda: [transforms.TrivialAugmentWide()],
    "none": list,
}


@pytest.mark.parametrize("augment", LIBRARY)
@pytest.mark.parametrize("erasing", [0.0, 1.0])
def test_augmentation_is_torchvisions_and_belongs_to_the_sample(augment, erasing, tmp_path):
    data = pictures(folder(tmp_path), augment=augment, random_erasing=erasing)
    reference = [transforms.RandomResizedCrop(16, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
    reference += [*LIBRARY[augment](), transforms.PILToTensor()]
    if erasing:
        reference += [transforms.RandomErasing(1.0, value=[255 * m for m in (0.485, 0.456, 0.406)])]
    seeded = SeededDataset(data.train.dataset, partial(derive, 3, AUGMENT))
    plain = transforms.Compose(reference)
    from PIL import Image

    seen = []
    for number in (0, 5):
        for epoch in (0, 1):
            ours = seeded.__getitems__((epoch, np.array([number])))[0][0]
            torch.randn(7), random.random()  # whatever was drawn before
            assert torch.equal(ours, seeded.__getitems__((epoch, np.array([number])))[0][0])
            torch.manual_seed(derive(3, AUGMENT, epoch, number) >> 1)
            assert torch.equal(ours, plain(Image.open(data.train.dataset.samples[number][0])))
            assert ours.dtype == torch.uint8 and ours.shape == (3, 16, 16)
            seen.append(ours)
    assert not torch.equal(seen[0], seen[1])
    still = data.validation.dataset
    assert torch.equal(still[0][0], still[0][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "heavy"}, r"data\.augment: 'heavy' is unknown; pick one of none, light, randaugment, trivial"),
        ({"test_folders": "val"}, r"data\.test_folders: 'val' is not a list"),
    ],
)
def test_image_folder_refuses(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pictures(folder(tmp_path), **changes)
