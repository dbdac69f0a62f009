import json
import math
import random

import pytest

from launcher.core.errors import ConfigError
from launcher.run.pruning import Pruning

ASHA = {"sweep": "", "trial": "", "method": "asha", "first": 1, "factor": 3, "brackets": 1, "metric": "eval/loss"}


def rule(**changes):
    return Pruning(**ASHA | {"mode": "min"} | changes)


@pytest.mark.parametrize(("first", "factor", "rungs"), [(1, 3, [1, 3, 9, 27]), (2, 2, [2, 4, 8, 16]), (4, 5, [4, 20])])
def test_rungs_are_where_the_paper_has_them(first, factor, rungs):
    known = rule(first=first, factor=factor)
    assert [n for n in range(1, 31) if known.decides_at(n, 0)] == rungs


def test_brackets_of_hyperband_begin_a_rung_later_each():
    known = rule(method="hyperband", brackets=3)
    begins = [next(n for n in range(1, 99) if known.decides_at(n, number)) for number in range(6)]
    assert begins == [1, 3, 9, 1, 3, 9]


def test_those_that_go_on_are_the_best_third_of_those_that_have_come():
    """As Algorithm 2 of the paper has it: the top floor(n / factor) of a rung, n being all that are in it."""
    random.seed(3)
    for _ in range(200):
        n = random.randint(1, 20)
        curves = {str(i): [random.random() for _ in range(random.choice((1, 1, 3)))] for i in range(n)}
        for evaluations in (1, 3):
            there = [name for name, curve in curves.items() if len(curve) >= evaluations]
            best = sorted(there, key=lambda name: curves[name][evaluations - 1])[: len(there) // 3]
            assert [name for name in there if rule().judge(name, curves, evaluations)] == [
                name for name in there if name in best
            ]


def test_a_bracket_compares_its_own_trials_alone():
    known = rule(method="hyperband", brackets=2, factor=2)
    curves = {"a": [1.0, 1.0], "b": [0.1, 0.1], "c": [2.0, 2.0], "d": [0.2, 0.2]}
    assert [name for name in "ac" if known.judge(name, curves, 1)] == ["a"]
    assert [name for name in "bd" if known.judge(name, curves, 2)] == ["b"]
    assert known.judge("d", curves, 1)  # no rung of its bracket


def test_the_median_ends_what_is_worse_at_its_best():
    known, others = rule(method="median"), {f"{i}": [1.0, float(i)] for i in range(5)}
    assert known.judge("own", others | {"own": [5.0, 2.0]}, 2)
    assert not known.judge("own", others | {"own": [5.0, 2.1]}, 2)
    assert known.judge("own", others | {"own": [1.5, 9.0, 9.0]}, 2), "1.5 was its best"
    del others["0"]
    assert known.judge("own", others | {"own": [5.0, 9.0]}, 2), "four know too little"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_trial_is_judged_by_the_records_of_the_sweep(tmp_path, mode):
    sign = 1 if mode == "min" else -1
    values = {"a": [3, 2], "b": [1], "c": ["nan"], "d": [2]}
    for name, curve in values.items():
        (tmp_path / name).mkdir()
        rows = [{"step": 1, "epoch": 0.5, "train/loss": 1.0}]
        rows += [
            {"step": 10 * step, "epoch": step, "eval/x": value if value == "nan" else sign * value}
            for step, value in enumerate(curve, 1)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "grid.json").write_text(json.dumps({"points": {name: [] for name in [*values, "none"]}}))

    def keeps(name, evaluations=1):
        return rule(sweep=str(tmp_path), trial=name, metric="eval/x", mode=mode).keeps(evaluations)

    assert [name for name in values if keeps(name)] == ["b"]
    assert keeps("a", 2), "no rung"
    assert rule(sweep=str(tmp_path), metric="eval/x", mode=mode).curve("c") == [math.inf]
    assert rule(sweep=str(tmp_path), metric="eval/x", mode=mode).curve("none") == []


def test_a_metric_that_is_not_measured_ends_no_trial_for_later(tmp_path):
    """Each would be ended, taken for one that may go on, and ended again."""
    (tmp_path / "grid.json").write_text(json.dumps({"points": {"a": []}}))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text(json.dumps({"step": 1, "eval/loss": 0.5}) + "\n")
    known = rule(sweep=str(tmp_path), trial="a", metric="eval/f1")
    with pytest.raises(ConfigError, match=r"pruner=asha.*eval/f1.*metrics\.jsonl"):
        known.keeps(1)
