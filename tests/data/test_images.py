"""Images in memory."""

import torch
from data_sources import load

from launcher.data.images import Standardise, long_tail


def test_prepare_leaves_the_raw_images_as_they_are():
    for raw in (torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0.0, 255.0]])):
        before = raw.clone()
        result = Standardise(100.0, 50.0)(raw)
        torch.testing.assert_close(result, torch.tensor([[-2.0, 3.1]]))
        assert torch.equal(raw, before)


def test_long_tail_has_the_profile_of_cui_et_al():
    labels = torch.arange(5000) % 10
    stay = long_tail(labels, 100, 0)
    # Their long-tailed profile with factor 100: n mu^i with mu = 100^(-1/9), 500 down to 5.
    assert torch.bincount(labels[stay]).tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert stay.tolist() == sorted(set(stay.tolist()))
    assert torch.equal(long_tail(labels, 1, 0), torch.arange(5000))
    assert torch.bincount(labels[long_tail(labels, 1e9, 0)]).min() == 1


def test_imbalance_thins_the_training_part_alone():
    whole, thin = load("digits"), load("digits", imbalance=20)
    assert torch.equal(whole.test.inputs, thin.test.inputs)
    assert torch.equal(whole.validation.targets, thin.validation.targets)
    ratio = thin.class_counts[0] / thin.class_counts[9]
    assert 18 < ratio < 24 and thin.class_counts[0] == whole.class_counts[0]
