import math

import numpy as np
import pytest
from scipy import stats

from launcher.sweep import inference
from launcher.sweep.inference import holm, interval, paired, resolution_of, sequential

pytestmark = pytest.mark.versions  # scipy's functions


def test_an_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(3, 2, 7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    found = interval(values.tolist())
    assert (found.low, found.high) == pytest.approx(expected) and found.mean == pytest.approx(values.mean())


def test_one_value_has_no_interval():
    assert interval([2.0]) == inference.Estimate(2.0, None, None)
    assert interval([1.0, math.inf]) == inference.Estimate(math.inf, None, None)


@pytest.mark.parametrize("n", range(3, 11))
def test_a_difference_is_that_of_scipy(n):
    numbers = np.random.default_rng(n)
    first, second = numbers.normal(size=n), numbers.normal(0.5, 1, size=n)
    expected = stats.ttest_rel(first, second)
    ends = expected.confidence_interval(0.95)
    found = paired(first.tolist(), second.tolist(), 0.01)
    assert found.p == pytest.approx(expected.pvalue) and (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.mean == pytest.approx(np.mean(first - second))


def test_with_many_seeds_it_is_what_a_bootstrap_finds():
    numbers = np.random.default_rng(1)
    common = numbers.normal(size=400)
    first, second = common + numbers.exponential(size=400), common + numbers.exponential(size=400)
    drawn = stats.bootstrap((first - second,), np.mean, n_resamples=4000, random_state=1).confidence_interval
    found = paired(first.tolist(), second.tolist())
    width = found.high - found.low
    assert abs(found.low - drawn.low) < 0.1 * width and abs(found.high - drawn.high) < 0.1 * width


def test_two_seeds_decide_nothing():
    assert paired([1.0, 1.1], [2.0, 2.2]).p is None and paired([1.0], [2.0]).low is None
    assert paired([1.0, math.nan, 3.0], [1.0, 2.0, 3.0]).p is None


def test_equal_differences_prove_no_more_than_the_resolution_lets_them():
    # An accuracy of 100 samples in steps of 0.01: three seeds that each differ by one step are chance.
    first, second = [0.81, 0.83, 0.86], [0.80, 0.82, 0.85]
    step = resolution_of([*first, *second])
    assert step == pytest.approx(0.01) and paired(first, second, step).p > 0.05
    assert paired([0.91, 0.93, 0.96], second, step).p < 0.01  # by eleven steps
    assert paired(first, first, step).p == 1


def test_holm_is_that_of_its_definition():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_looking_after_every_seed_finds_no_more_than_the_level_where_nothing_is():
    """Two equal settings after 3, 4, ... 12 seeds: some look is below 5 % in many, a corrected one in few."""
    numbers, looks = np.random.default_rng(5), 10
    plain = corrected = 0
    for _ in range(1000):
        first, second = numbers.normal(size=(2, looks + 2)).tolist()
        plain += any(paired(first[:n], second[:n]).p < 0.05 for n in range(3, looks + 3))
        corrected += sequential(first, second, looks).p < 0.05
    assert plain > 120 and corrected <= 50, (plain, corrected)


def test_what_a_look_has_decided_stays_decided():
    first, second = [1.0, 1.1, 1.2, 1.1], [3.0, 3.1, 3.2, 3.1]
    at_three = sequential(first[:3], [3.0, 3.11, 3.2], 4).p
    assert at_three == pytest.approx(4 * stats.ttest_rel(first[:3], [3.0, 3.11, 3.2]).pvalue)
    later = sequential([*first, 1.0, 9.0], [3.0, 3.11, *second[2:], 3.0, 0.0], 4)
    assert later.p <= at_three and later.mean == pytest.approx(
        np.mean(np.subtract([*first, 1, 9], [3, 3.11, 3.2, 3.1, 3, 0]))
    )
    assert sequential(first[:2], second[:2], 4).p is None
    assert sequential(first, [3.0, 3.2, 3.1, 3.3], 1) == paired(first, [3.0, 3.2, 3.1, 3.3])
