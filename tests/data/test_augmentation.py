"""Augmentation of images in memory against loops over samples."""

import math

import numpy as np
import pytest
import torch
from data_sources import load
from vision_options import transforms

from launcher.data.augmentation import Erase, FlipAndShift, Together, augmentation

pytestmark = pytest.mark.versions


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_augment_equals_a_loop_over_samples(flip, shift):
    if not flip and not shift:
        pytest.skip("nothing to augment")
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (40, 2, 6, 5), dtype=torch.uint8, generator=generator)
    augment = FlipAndShift(flip, shift)
    uniforms = torch.rand(40, augment.draws, generator=generator)
    expected = []
    for image, draws in zip(raw.numpy(), uniforms.tolist(), strict=True):
        if flip and draws[-1] < 0.5:
            image = image[:, :, ::-1]
        if shift:
            down, right = (math.floor(u * (2 * shift + 1)) for u in draws[:2])
            frame = np.zeros((2, 6 + 2 * shift, 5 + 2 * shift), np.uint8)
            frame[:, shift : shift + 6, shift : shift + 5] = image
            image = frame[:, down : down + 6, right : right + 5]
        expected.append(image.copy())
    result = augment(raw, uniforms)
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), np.stack(expected))
    # Each row depends on its own row alone, and the middle draw with no flip leaves the image as it is.
    alone = torch.cat([augment(raw[i : i + 1], uniforms[i : i + 1]) for i in range(40)])
    assert torch.equal(result, alone)
    assert torch.equal(augment(raw, torch.full_like(uniforms, 0.5)), raw)


def test_augment_takes_the_whole_range_of_uniforms():
    raw = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    for shift in range(1, 28):
        for edge in (0.0, 1 - 2**-24):
            assert FlipAndShift(True, shift)(raw, torch.full((2, 3), edge)).shape == raw.shape


def test_draws_are_as_many_as_augment_takes():
    assert [FlipAndShift(*case).draws for case in ((True, 0), (False, 2), (True, 2))] == [1, 2, 3]
    data = load("digits", shift=1)
    assert data.train.draws == 2 and data.train.augment is not None
    assert data.validation.augment is None and data.test.augment is None
    assert load("digits", shift=0).train.augment is None and load("digits", shift=0).train.draws == 0


def test_erasing_in_memory_paints_rectangles_of_the_papers_sizes():
    generator = torch.Generator().manual_seed(0)
    raw = torch.full((4000, 1, 40, 40), 9, dtype=torch.uint8)
    uniforms = torch.rand(4000, 5, generator=generator)
    result = Erase(0.6, [200.0])(raw, uniforms)
    painted = (result == 200).squeeze(1)
    assert result.dtype == torch.uint8 and set(result.unique().tolist()) == {9, 200}
    heights, widths = painted.any(2).sum(1), painted.any(1).sum(1)
    assert torch.equal(painted.sum((1, 2)), heights * widths), "each is one whole rectangle"
    chosen = heights > 0
    assert abs(chosen.float().mean() - 0.6) < 0.03
    area = (heights * widths)[chosen] / 1600
    assert area.min() > 0.01 and area.max() < 0.36 and abs(area.mean() - 0.175) < 0.01
    ratio = (heights / widths)[chosen].log()
    assert abs(ratio.mean()) < 0.06 and ratio.abs().max() < 1.45
    # Torchvision's own, by its mean area and the spread of its shapes.
    torch.manual_seed(0)
    library = transforms.RandomErasing(1.0)
    draws = [library.make_params([raw[0]]) for _ in range(2000)]
    areas = torch.tensor([draw["h"] * draw["w"] / 1600 for draw in draws])
    ratios = torch.tensor([draw["h"] / draw["w"] for draw in draws]).log()
    assert abs(areas.mean() - area.mean()) < 0.01 and abs(ratios.std() - ratio.std()) < 0.05
    for lines in (painted.any(1), painted.any(2)):  # anywhere, and at both ends alike
        often = lines.float().mean(0)
        assert often.min() > 0.01 and (often - often.flip(0)).abs().max() < 0.05
    alone = torch.cat([Erase(0.6, [200.0])(raw[i : i + 1], uniforms[i : i + 1]) for i in range(50)])
    assert torch.equal(alone, result[:50])


def test_augmentations_in_memory_one_after_the_other():
    raw = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    uniforms = torch.rand(30, 8)
    both = augmentation(True, 2, 0.5, 8, [1.0, 2.0, 3.0])
    assert isinstance(both, Together) and both.draws == 8
    expected = Erase(0.5, [1.0, 2.0, 3.0])(FlipAndShift(True, 2)(raw, uniforms[:, :3]), uniforms[:, 3:])
    assert torch.equal(both(raw, uniforms), expected)
    assert augmentation(False, 0, 0.0, 8, [0.0]) is None
