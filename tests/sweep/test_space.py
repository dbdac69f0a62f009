import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from launcher.core.errors import ConfigError
from launcher.sweep.space import space_of


def space(*words):
    return space_of(OverridesParser.create().parse_overrides(list(words)))


SPACES = {
    "lr=interval(0.1,1)": ([0.1, 1.0], {0.25: "lr=0.25", 1e-5: "lr=1e-05"}),
    "lr=tag(log,interval(0.0001,1))": ([0.0001, 1.0], {0.1: "lr=0.1"}),
    "n=int(interval(1,8))": ([1, 8], {3: "n=3"}),
    "n=tag(log,int,interval(1,64))": ([1, 64], {8: "n=8"}),
    "n=range(1,10,3)": ([1, 7], {4: "n=4"}),
    "n=range(9,0,-2)": ([1, 9], {5: "n=5"}),
    "seed=range(0,2000000000)": ([0, 1999999999], {7: "seed=7"}),
    "x=range(0,1,0.1)": ([0.0, 0.9], {0.1 * 3: "x=0.3"}),
    "n=tag(log,range(1,9))": ([1, 8], {2: "n=2"}),
    "o=sgd,adam": (["sgd", "adam"], {"adam": "o=adam"}),
    "+o=1,null,'a b'": (["1", "null", "'a b'"], {"null": "+o=null"}),
    "h=[1,2],[3]": (["[1,2]", "[3]"], {"[1,2]": "h=[1,2]"}),
}


@pytest.mark.parametrize("word", SPACES)
def test_what_is_searched_is_what_hydra_writes(word):
    (dimension,) = space(word).dimensions
    ends, texts = SPACES[word]
    assert dimension.ends == pytest.approx(ends) if isinstance(ends[0], float) else dimension.ends == ends
    for value, text in texts.items():
        assert dimension.override(value) == text
    known = dimension.distribution
    assert getattr(known, "log", False) == ("log" in word)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask({dimension.key: known})
    (back,) = OverridesParser.create().parse_overrides([dimension.override(trial.params[dimension.key])])
    value = back.value()
    assert not isinstance(trial.params[dimension.key], float) or value == pytest.approx(trial.params[dimension.key])


def test_what_has_one_value_is_no_dimension():
    found = space("epochs=3", "o=sgd", "~x", "lr=interval(0,1)", "n=range(4,5)", "m=choice(7)")
    assert [one.key for one in found.dimensions] == ["lr"]
    assert found.overrides({"lr": 0.5}) == ["epochs=3", "o=sgd", "~x", "n=4", "m=7", "lr=0.5"]


def test_of_one_setting_the_last_counts():
    """As of an experiment's params and the command line, which comes after them."""
    assert space("lr=interval(0,1)", "o=a,b", "lr=0.5").fixed == ["lr=0.5"]
    (dimension,) = space("+lr=0.5", "lr=interval(0,1)", "lr=interval(2,3)").dimensions
    assert dimension.ends == [2.0, 3.0]


def test_corners_have_every_choice_and_both_ends():
    corners = space("o=a,b,c", "lr=interval(1,2)").corners()
    assert corners[0] == {"o": "a", "lr": 1.0} and len(corners) == 4
    assert {corner["o"] for corner in corners} == {"a", "b", "c"} and {corner["lr"] for corner in corners} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr=tag(log,interval(0,1))", "lr=tag.*0"),
        ("lr=interval(2,1)", "lr=interval.*2.0"),
        ("lr=tag(uniform,interval(0,1))", "tag uniform is not known"),
        ("lr=tag(log,choice(1,2))", "a tag says"),
        ("lr=tag(int,interval(0.5,1))", "whole ends"),
        ("lr=tag(log,range(0.1,1,0.1))", "no logarithm"),
        ("lr=0.1", "nothing to search"),
        ("lr=range(0,0)", r"^lr=range\(0,0\): there is nothing in it"),
        ("n=tag(int,interval(1,inf))", "whole ends, not 1(.0)? and inf"),
    ],
)
def test_what_cannot_be_searched_is_said(word, said):
    with pytest.raises(ConfigError, match=said):
        space(word)
