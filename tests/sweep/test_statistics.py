import math

import numpy as np
import pytest

from launcher.sweep.statistics import Sample, best, bins_of, by_setting, ranking

RESULTS = [
    ({"lr": "0.1", "seed": "0"}, 0.5),
    ({"lr": "0.1", "seed": "1"}, 0.7),
    ({"lr": "0.01", "seed": "0"}, 0.2),
    ({"lr": "0.01", "seed": "1"}, 0.3),
    ({"lr": "1e-3", "seed": "0"}, math.nan),
    ({"lr": "auto", "seed": "0"}, 0.9),
]


def test_mean_and_deviation_are_those_of_numpy():
    values = [0.3, 1.5, -2.0, 7.25]
    sample = Sample("", values)
    assert sample.mean == pytest.approx(np.mean(values)) and sample.deviation == pytest.approx(np.std(values, ddof=1))


def test_a_deviation_needs_two_finite_values():
    assert Sample("", [1.0]).deviation is None and Sample("", [1.0, math.nan]).deviation is None
    assert math.isnan(Sample("", [1.0, math.nan]).mean)


def test_the_best_is_the_best_of_those_that_are_finite():
    assert best([3.0, math.nan, 1.0, -math.inf], "min") == 1 and best([3.0, math.nan, 1.0], "max") == 3
    assert math.isnan(best([math.nan], "min"))


def test_a_ranking_puts_what_is_not_known_last():
    values = [None, 2.0, math.nan, 1.0]
    assert sorted(values, key=ranking("min"))[:2] == [1, 2] and sorted(values, key=ranking("max"))[:2] == [2, 1]


def test_effects_are_over_all_that_share_a_value_numbers_first():
    found = by_setting(RESULTS, ["lr", "seed"])
    assert [sample.label for sample in found["lr"]] == ["1e-3", "0.01", "0.1", "auto"]
    assert found["lr"][1].values == [0.2, 0.3] and found["seed"][1].values == [0.7, 0.3]
    assert by_setting(RESULTS[:2], ["lr"]) == {}


def test_many_numbers_are_put_into_bins_of_equal_counts():
    numbers = np.random.default_rng(0).permutation(40)
    results = [({"lr": str(number)}, float(number)) for number in numbers]
    found = by_setting(results, ["lr"])["lr"]
    assert [sample.label for sample in found] == ["0 to 9", "10 to 19", "20 to 29", "30 to 39"]
    assert [sorted(sample.values) for sample in found] == [list(range(n, n + 10)) for n in (0, 10, 20, 30)]
    repeated = [str(min(number, 12)) for number in range(40)]
    assert len(set(bins_of(repeated)[12:])) == 1  # equal numbers are not torn apart
    assert bins_of(["b", "10", "9", "b"]) == [2, 1, 0, 2]
