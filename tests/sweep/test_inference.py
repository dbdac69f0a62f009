import math

import numpy as np
import pytest
from scipy import stats

from launcher.sweep import inference
from launcher.sweep.inference import holm, interval, paired, resolution_of

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
