"""Images of shapes: bright where a pixel has a class, and each class of the form that its name says."""

import pytest
import torch
from data_sources import load

from launcher.core.errors import ConfigError
from launcher.data.shapes import CLASSES


def test_pixels_with_a_class_are_bright_and_of_its_form():
    data = load("shapes", samples=200, size=40)
    split = data.train
    image, mask = split.inputs[:, 0].float(), split.targets
    assert mask.shape == image.shape and sorted(mask.unique().tolist()) == [0, 1, 2, 3] == list(range(len(CLASSES)))
    assert image[mask > 0].mean() - image[mask == 0].mean() > 60
    extents = {1: 1.0, 2: torch.pi / 4, 3: 0.5}  # share of its box that a form fills
    found = {kind: [] for kind in extents}
    for one in mask:
        kinds = one.unique().tolist()
        if len(kinds) != 2:
            continue
        rows, columns = (one == kinds[1]).nonzero().unbind(1)
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        found[kinds[1]].append(float(len(rows) / box))
    for kind, extent in extents.items():  # more where two of a kind lie apart, less where they overlap
        assert len(found[kind]) > 5 and torch.tensor(found[kind]).median() == pytest.approx(extent, abs=0.1)
    prepared = split.prepare(split.inputs)
    assert prepared.mean().abs() < 1e-3 and prepared.std() == pytest.approx(1, abs=1e-3)
    assert load("shapes", samples=200, size=40).test.inputs.equal(data.test.inputs)
    assert not load("shapes", samples=200, size=40, split_seed=1).test.inputs.equal(data.test.inputs)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"size": 7}, {"size": 1.5}, {"samples": 2}])
def test_what_is_wrong_is_one_sentence(wrong):
    with pytest.raises(ConfigError, match="data"):
        load("shapes", **wrong)
