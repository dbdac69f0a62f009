"""Classes and statistics of tables, against exact numbers."""

from fractions import Fraction

import numpy as np
import pytest

from launcher.data.table_statistics import CONSTANT, classes_of, standardise, statistics


@pytest.mark.parametrize("offset", [0, 10**15, 2**53, 10**18, 10**30])
def test_classes_are_compared_exactly_however_long_they_are(offset):
    values = [str(offset + i % 3) for i in range(12)]
    names, labels, numeric = classes_of(values, str)
    assert names == [str(offset + i) for i in range(3)] and numeric and labels.tolist() == [0, 1, 2] * 4


def test_classes_are_ordered_by_number_and_named_as_written():
    assert classes_of(["10", "9.50", "-1", "1e1", "+3", ".5"], str)[0] == ["-1", ".5", "+3", "9.50", "10"]
    assert classes_of(["007", "7", "10"], str)[0] == ["007", "10", "7"]  # a code with leading zeros is a text
    names, labels, _ = classes_of(["1.0", "2", "1", "2.00"], str)
    assert names == ["1", "2"] and labels.tolist() == [0, 1, 0, 1]
    assert classes_of(["1_0", "10"], str)[2] is False and classes_of(["１", "1"], str)[2] is False


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6, 1e12, 1e15, -1e15])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e5])
def test_statistics_are_those_of_exact_numbers(offset, spread):
    column = offset + spread * np.random.RandomState(0).randn(200)
    if len(set(column)) < 100:
        pytest.skip("float64 holds no such numbers")
    exact = [Fraction(value) for value in column.tolist()]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    for pieces in ([column[:, None]], np.array_split(column[:, None], 7)):
        found_mean, found_std = statistics(pieces)
        assert abs(Fraction(found_mean[0]) - mean) <= Fraction(np.spacing(abs(offset)) + 1e-14 * spread)
        assert found_std[0] ** 2 == pytest.approx(float(variance), rel=1e-9)
    scaled = standardise(column[:, None], found_mean, found_std)
    assert abs(scaled.mean()) <= 2 * np.spacing(abs(offset)) / spread + 1e-12


def test_a_constant_column_becomes_zero_whatever_its_size():
    for value in (0.0, 0.1, 1234567890123456789.0, 1e300, -7e-300):
        rows = np.full((37, 1), value)
        mean, std = statistics([rows])
        assert mean[0] == value and std[0] == CONSTANT and not standardise(rows, mean, std).any()
        assert not np.float32(standardise(rows + 1e6, mean, std)).any()  # nothing was learned about another value
    noise = np.array([[0.1], [0.30000000000000004 - 0.2], [0.1]])  # equal but for the last bits
    assert statistics([noise])[1][0] == CONSTANT
    wide = np.array([[-1.7e308], [1.7e308], [0.0]])
    mean, std = statistics([wide])
    assert np.isfinite([mean, std]).all()
    np.testing.assert_allclose(standardise(wide, mean, std)[:, 0], [-np.sqrt(1.5), np.sqrt(1.5), 0], atol=1e-12)
