import numpy as np
import pytest

from launcher.sweep.seed_groups import MANY, grouped, pairs_of, summary_of


def sweep_of(values, mode="max"):
    """Groups of values [groups, seeds]."""
    return grouped(
        [({"lr": str(row)}, str(s), float(v)) for row, seeds in enumerate(values) for s, v in enumerate(seeds)], mode
    )


def test_at_most_five_percent_of_null_sweeps_decide_anything():
    numbers = np.random.default_rng(0)
    wrong = liberal = 0
    for number in range(1000):
        seeds = 3 + number % 8
        # What a seed does to all settings, and noise of its own to each; by turns normal, skewed, in steps.
        noise = numbers.normal(size=(3, seeds)) if number % 3 else numbers.lognormal(size=(3, seeds))
        values = numbers.normal(size=seeds) + noise
        values = np.round(values) / 360 if number % 3 == 2 else values
        wrong += any(pair.decided for pair in pairs_of(sweep_of(values)))
        drawn = numbers.integers(0, seeds, (500, seeds))
        low, high = np.quantile((values[0] - values[1])[drawn].mean(1), [0.025, 0.975])
        liberal += low > 0 or high < 0
    assert wrong <= 50, wrong
    assert liberal > 80, liberal  # a percentile bootstrap errs more often, with one of the three pairs alone


def test_what_differs_is_found_and_pairs_see_through_what_a_seed_does():
    numbers = np.random.default_rng(1)
    found = right = 0
    for _ in range(200):
        values = numbers.normal(0, 1, 5) + np.array([[0.0], [0.5]]) + numbers.normal(0, 0.1, (2, 5))
        (pair,) = pairs_of(sweep_of(values))
        found += pair.decided
        right += pair.low <= 0.5 <= pair.high
        assert pair.a.settings == {"lr": "1"} and pair.difference == pytest.approx((values[1] - values[0]).mean())
    assert found > 190  # ten times the noise between seeds lies over it
    assert 180 <= right <= 199  # the interval covers the truth in 95 %


def test_only_seeds_in_common_are_compared():
    results = [({"lr": "a"}, s, v) for s, v in (("0", 1.0), ("1", 2.0), ("2", 3.0), ("9", 100.0))]
    results += [({"lr": "b"}, s, v) for s, v in (("0", 1.5), ("1", 2.6), ("2", 3.4), ("7", -100.0))]
    (pair,) = pairs_of(grouped(results, "min"))
    assert pair.n == 3 and pair.difference == pytest.approx(2.5 - 2.0) and pair.a.settings == {"lr": "b"}
    assert pair.a.n == 4


def test_a_seed_that_ran_twice_counts_once():
    groups = grouped([({}, "0", 1.0), ({}, "0", 1.0), ({}, "1", 3.0)], "min")
    assert groups[0].n == 2 and groups[0].estimate.mean == 2.0 and groups[0].label == "all seeds"


def test_too_few_seeds_show_no_difference():
    groups = sweep_of([[1.0], [5.0]])
    (pair,) = pairs_of(groups)
    assert (pair.p, pair.low, pair.decided) == (None, None, False) and pair.difference == 4.0
    assert pair.verdict == "no difference shown (1 seed)"
    assert summary_of([pair], groups).startswith("no difference shown (1 seed): two settings need 3 seeds")
    (pair,) = pairs_of(sweep_of([[1.0, 1.1], [5.0, 5.2]]))
    assert pair.p is None and pair.low is not None and pair.verdict == "no difference shown (2 seeds)"


def test_a_group_that_diverged_comes_last_and_is_said():
    groups = sweep_of([[1.0, 2.0, float("nan")], [0.1, 0.2, 0.4]])
    (pair,) = pairs_of(groups)
    assert groups[1].diverged == 1 and groups[1].deviation is None and pair.difference is None
    assert pair.verdict == "no difference shown (a seed has diverged)"


def test_of_many_groups_only_pairs_that_are_tested_are_listed():
    groups = sweep_of([[float(row)] * (3 if row < 2 else 1) for row in range(MANY + 1)])
    assert len(pairs_of(groups)) == 1 and len(pairs_of(groups[:5])) == 10


def test_the_sentence_counts_pairs():
    values = np.random.default_rng(2).normal(0, 0.01, (3, 5)) + np.array([[0.0], [0.0], [1.0]])
    groups = sweep_of(values)
    pairs = pairs_of(groups)
    assert summary_of(pairs, groups).startswith("2 of 3 pairs of settings differ")
    assert [pair.decided for pair in pairs] == [True, True, False] and "p < 0.0001" in pairs[0].verdict
    assert summary_of([], groups[:1]) == ""
    alike = groups[1:]
    assert summary_of(pairs_of(alike), alike).startswith("no difference shown (paired t-test")
    apart = groups[:2]
    assert summary_of(pairs_of(apart), apart).startswith("the two settings that can be compared differ (paired")
    null = sweep_of(np.random.default_rng(3).normal(size=(3, 4)))
    assert summary_of(pairs_of(null), null).startswith("no difference shown between any of 3 pairs of settings")
