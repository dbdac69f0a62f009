import numpy as np

from launcher.batching.keys import derive, derive_each, uniforms


def test_uniforms_are_uniform_and_belong_to_the_sample():
    draws = uniforms(np.arange(20000), 3, derive(1))
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01 and np.abs(draws.var(0) - 1 / 12).max() < 0.002
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert (uniforms(np.array([17]), 3, derive(1)) == draws[17]).all()


def test_many_keys_are_derived_at_once_as_each_alone():
    before = np.full(3, derive(1, 2), dtype=np.uint64)
    assert derive_each(before, np.array([4, 5, 6]), 7).tolist() == [derive(1, 2, c, 7) for c in (4, 5, 6)]
