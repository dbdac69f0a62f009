import math

import numpy as np
import pytest
from scipy import stats

from launcher.sweep.variance import analysis_of

pytestmark = pytest.mark.versions  # scipy's functions

NAMES = ["a", "b", "seed"]


def grid(cell, seeds=4, noise=0.0, seed=0):
    numbers = np.random.default_rng(seed)
    return [
        ({"a": str(a), "b": b, "seed": str(s)}, cell(a, b, s) + noise * numbers.normal())
        for a in range(3) for b in "xy" for s in range(seeds)
    ]  # fmt: skip


def shares(analysis):
    return {effect.label: effect.share for effect in analysis.effects}


def test_shares_of_a_full_grid_are_those_of_the_textbook():
    results = grid(lambda a, b, s: a + (b == "x") * (1 + a) + 0.3 * s, noise=0.2)
    y = np.array([value for _, value in results]).reshape(3, 2, 4)
    total = ((y - y.mean()) ** 2).sum()
    by_a, by_b = y.mean((1, 2)) - y.mean(), y.mean((0, 2)) - y.mean()
    both = y.mean(2) - y.mean() - by_a[:, None] - by_b
    expected = {"a": 8 * (by_a**2).sum(), "b": 12 * (by_b**2).sum(), "a × b": 4 * (both**2).sum()}
    expected["seed"] = 6 * ((y.mean((0, 1)) - y.mean()) ** 2).sum()
    found = analysis_of(results, NAMES)
    assert shares(found) == pytest.approx({name: value / total for name, value in expected.items()})
    assert sum(shares(found).values()) + found.rest == pytest.approx(1) and found.trials == 24


def test_one_setting_alone_has_the_p_value_of_scipy():
    results = [
        ({"a": str(a)}, v) for a, v in zip([0, 0, 0, 1, 1, 2, 2, 2], [1.0, 1.2, 0.9, 2, 1.1, 1.3, 3, 1.4], strict=True)
    ]
    groups = [[v for settings, v in results if settings["a"] == a] for a in "012"]
    (effect,) = analysis_of(results, ["a"]).effects
    assert effect.p == pytest.approx(stats.f_oneway(*groups).pvalue) and effect.freedom == 2


def test_without_balance_a_setting_is_what_it_adds_to_the_others():
    results = grid(lambda a, b, s: a + 3 * (b == "x"), noise=0.5)
    results = [row for number, row in enumerate(results) if number % 5]
    y = np.array([value for _, value in results])
    one = np.ones(len(y))
    a = [np.array([s["a"] == level for s, _ in results], float) for level in "12"]
    b = [np.array([s["b"] == "y" for s, _ in results], float)]
    seeds = [np.array([s["seed"] == level for s, _ in results], float) for level in "123"]

    def left(*columns):
        matrix = np.stack(columns, 1)
        return ((y - matrix @ np.linalg.lstsq(matrix, y, rcond=None)[0]) ** 2).sum()

    expected = (left(one, *b, *seeds) - left(one, *a, *b, *seeds)) / ((y - y.mean()) ** 2).sum()
    assert shares(analysis_of(results, NAMES))["a"] == pytest.approx(expected)


def test_known_effects_are_found_and_no_others():
    found = analysis_of(grid(lambda a, b, s: 2.0 * a + 5 * s, noise=0.1), NAMES)
    verdicts = {effect.label: effect.verdict for effect in found.effects}
    assert verdicts == {"a": "differs", "seed": "differs", "b": "no difference shown", "a × b": "no difference shown"}


def test_of_noise_at_most_five_percent_show_an_effect():
    wrong = [
        any(effect.p < 0.05 for effect in analysis_of(grid(lambda a, b, s: s, noise=1.0, seed=n), ["a", "b"]).effects)
        for n in range(300)
    ]
    assert sum(wrong) <= 15, sum(wrong)


def test_without_repetition_nothing_is_tested():
    found = analysis_of(grid(lambda a, b, s: a * (b == "x"), seeds=1), NAMES)
    assert {effect.verdict for effect in found.effects} == {"not tested: nothing is repeated"}
    assert found.rest == pytest.approx(0)


def test_settings_that_vary_together_cannot_be_told_apart():
    results = [({"a": str(n % 2), "b": str(n % 2)}, float(n)) for n in range(6)]
    found = analysis_of(results, ["a", "b"])
    assert [effect.verdict for effect in found.effects] == ["cannot be told apart from other settings"] * 2


def test_many_numbers_are_put_into_bins():
    numbers = np.random.default_rng(3)
    results = [({"lr": repr(float(lr))}, float(np.log(lr)) ** 2) for lr in 10 ** numbers.uniform(-4, 0, 40)]
    (effect,) = analysis_of(results, ["lr"]).effects
    assert effect.freedom == 3 and effect.share > 0.7


def test_what_does_not_vary_has_no_analysis():
    assert analysis_of([], ["a"]) is None and analysis_of([({"a": "1"}, 2.0)], ["a"]) is None
    assert analysis_of([({"a": "1"}, 2.0), ({"a": "2"}, 2.0)], ["a"]) is None
    assert analysis_of([({"a": "1"}, 2.0), ({"a": "2"}, math.nan)], ["a"]) is None
