import numpy as np
import pytest

from launcher.batching.keys import derive
from launcher.batching.permutation import EpochPermutation, permute


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 97, 1000, 4097])
def test_permutation_is_a_bijection_and_depends_on_the_key(n):
    one, other = (permute(np.arange(n), n, derive(key)) for key in (1, 2))
    assert sorted(one.tolist()) == list(range(n))
    if n > 10:
        assert one.tolist() != other.tolist()


def test_any_position_is_found_alone_and_far_away():
    whole = permute(np.arange(1000), 1000, 7)
    assert [permute(np.array([i]), 1000, 7)[0] for i in (0, 999, 500)] == whole[[0, 999, 500]].tolist()
    far = permute(np.array([10**15, 10**15 + 1]), 2 * 10**15, 7)
    assert len(set(far.tolist())) == 2 and (far < 2 * 10**15).all()


def test_permutations_are_uniform():
    """Each of 24 orders of 4 samples, and each place of a sample among 10, comes up as often as by chance."""
    orders, places = {}, np.zeros((10, 10))
    for key in range(4800):
        order = tuple(permute(np.arange(4), 4, derive(3, key)).tolist())
        orders[order] = orders.get(order, 0) + 1
        places[np.arange(10), permute(np.arange(10), 10, derive(4, key))] += 1
    chi_orders = sum((count - 200) ** 2 / 200 for count in orders.values())
    chi_places = ((places - 480) ** 2 / 480).sum()
    assert len(orders) == 24
    assert chi_orders < 60  # 23 degrees of freedom: 99.99 % is 56
    assert chi_places < 145  # 81 degrees of freedom: 99.99 % is 138


def test_permutations_at_once_are_those_of_each_alone():
    generator = np.random.RandomState(0)
    for size in (1, 2, 3, 7, 64, 1000):
        keys = generator.randint(0, 2**62, 5).astype(np.uint64)
        positions = np.arange(size).repeat(5)
        found = permute(positions, np.full(5 * size, size), np.tile(keys, size)).reshape(size, 5)
        for column, key in enumerate(keys.tolist()):
            assert found[:, column].tolist() == permute(np.arange(size), size, key).tolist()
    sizes = generator.randint(1, 3000, 500)
    positions, keys = generator.randint(0, 10**9, 500) % sizes, generator.randint(0, 2**62, 500).astype(np.uint64)
    mixed = permute(positions, sizes, keys)
    for i in range(500):
        assert mixed[i] == permute(positions[i : i + 1], int(sizes[i]), int(keys[i]))[0]


def test_each_epoch_has_an_order_of_its_own():
    first, second = (EpochPermutation(50, seed=1).draw(epoch, np.arange(50)).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == [*range(50)] and first != second
    assert EpochPermutation(50, seed=1).draw(0, np.array([7])).tolist() == [first[7]]
