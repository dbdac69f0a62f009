"""Which samples are held out."""

import numpy as np
import pytest
import torch

from launcher.data.splitting import hold_out


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3333, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("stratified", [False, True])
def test_split_covers_each_sample_once(fraction, stratified):
    labels = torch.arange(100) % 7 if stratified else None
    kept, out = hold_out(100, fraction, 3, labels)
    assert sorted(kept.tolist() + out.tolist()) == list(range(100))
    assert kept.tolist() == sorted(kept.tolist()) and out.tolist() == sorted(out.tolist())
    if not stratified:
        assert len(out) == min(max(1, round(100 * fraction)), 99)


def test_split_is_a_function_of_its_arguments():
    labels = torch.arange(50) % 3
    torch.manual_seed(1)
    first = hold_out(50, 0.2, 5, labels)
    torch.manual_seed(2)
    again = hold_out(50, 0.2, 5, labels)
    other = hold_out(50, 0.2, 6, labels)
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])
    # Fixed for ever: what a run was trained on must not change with a version of NumPy, torch or this project.
    assert hold_out(10, 0.3, 0)[1].tolist() == [2, 4, 8]


@pytest.mark.parametrize("seed", range(5))
def test_split_gives_each_class_its_share(seed):
    counts = [1, 2, 3, 10, 55, 200]
    labels = torch.cat([torch.full((c,), i) for i, c in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    kept, out = hold_out(len(labels), 0.25, seed, labels)
    held = torch.bincount(labels[out], minlength=6)
    assert len(out) == round(0.25 * sum(counts))
    for count, here in zip(counts, held.tolist(), strict=True):
        assert abs(here - 0.25 * count) < 1 + 0.25
        assert here < count
    assert torch.bincount(labels[kept]).min() >= 1


def test_split_agrees_with_scikit_learn_on_the_size_of_each_class():
    model_selection = pytest.importorskip("sklearn.model_selection")
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    _, theirs = model_selection.train_test_split(labels.numpy(), test_size=20, stratify=labels.numpy())
    _, ours = hold_out(100, 0.2, 0, labels)
    assert torch.bincount(labels[ours]).tolist() == np.bincount(theirs).tolist() == [12, 6, 2]
