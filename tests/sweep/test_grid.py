import itertools

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from sweeps import end, start

from launcher.config.hydra_api import basic_sweeper
from launcher.core.errors import ConfigError
from launcher.sweep.grid import Grid, GridOptions


def grid(words, **options):
    nothing = dict.fromkeys(("max_batch_size", "zip", "seeds", "trials", "conditions", "decide"))
    chosen = GridOptions(**nothing | options)
    chosen.check()
    return Grid(OverridesParser.create().parse_overrides(words), chosen)


@pytest.mark.parametrize(
    "words",
    [
        ["a=1,2", "b=x,y,z", "c=3"],
        ["a=range(0,3)", "~b", "c='x,y',z", "+d=[1,2],[3]"],
        ["a=1,2", "a=3,4,5"],
        ["a={x:1},{x:2}", "b=choice(1,2)", "c=null,true"],
    ],
)
def test_products_are_those_of_hydras_own_sweeper(words):
    (own,) = basic_sweeper().split_arguments(OverridesParser.create().parse_overrides(words), None)
    found = grid(words)
    assert list(found.trials()) == own and len(found) == len(own)


def test_values_in_step():
    found = list(grid(["o=a,b", "x=1,2,3", "lr=0.1,0.2"], zip=[["o", "lr"]]).trials())
    steps = zip("ab", ("0.1", "0.2"), strict=True)
    assert found == [[f"o={o}", f"lr={lr}", f"x={x}"] for (o, lr), x in itertools.product(steps, "123")]


def test_repeats_over_seeds():
    found = grid(["o=a,b"], seeds=3)
    assert list(found.trials()) == [[f"o={o}", f"seed={n}"] for o in "ab" for n in range(3)]
    assert found.varying == {"o", "seed"}


def test_a_file_of_trials(tmp_path):
    (tmp_path / "trials").write_text("# two\n\no=a lr=0.1\no=b 'name=a b' ~c\n")
    found = grid(["seed=0,1"], trials=str(tmp_path / "trials"))
    lines = [["o=a", "lr=0.1"], ["o=b", "name=a b", "~c"]]
    assert list(found.trials()) == [[f"seed={n}", *line] for n in (0, 1) for line in lines]
    assert found.varying == {"o", "lr", "name", "c", "seed"}


def test_conditions_leave_out_and_leave_no_twins():
    found = list(grid(["o=a,b,c", "m=1,2", "k=5"], conditions=["m if o=a|c"]).trials())
    assert found == [
        ["o=a", "m=1", "k=5"], ["o=a", "m=2", "k=5"], ["o=b", "k=5"], ["o=c", "m=1", "k=5"], ["o=c", "m=2", "k=5"],
    ]  # fmt: skip


WRONG = {
    "in step with nothing": ({"zip": [["o", "z"]]}, "z is not swept"),
    "in step twice": ({"zip": [["o", "lr"], ["lr", "x"]]}, "lr is not swept"),
    "not as many": ({"zip": [["o", "x"]]}, r"as many values each, and have \[2, 3\]"),
    "one alone": ({"zip": [["o"]]}, "hydra.sweeper.zip=.*must be lists of settings"),
    "no seeds": ({"seeds": 0}, "hydra.sweeper.seeds=0"),
    "no condition": ({"conditions": ["m when o=a"]}, "'m when o=a' must be such as"),
    "a condition on nothing": ({"conditions": ["lr if p=a"]}, "p is not among the settings of the sweep, o, x, lr"),
    "a condition of nothing": ({"conditions": ["m if o=a"]}, "m is not among"),
    "a condition that is never met": ({"conditions": ["lr if o=a|c"]}, "o is nowhere c, but a, b"),
    "a setting with itself": ({"zip": [["o", "o"]]}, "names one setting twice"),
    "no file": ({"trials": "nowhere"}, "trials=nowhere: cannot be read"),
    "no line": ({"trials": "/dev/null"}, "no trial in it"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_go_together_is_said(what):
    options, said = WRONG[what]
    with pytest.raises(ConfigError, match=said):
        grid(["o=a,b", "x=1,2,3", "lr=0.1,0.2"], **options)


def test_an_interval_is_for_a_search():
    with pytest.raises(ConfigError, match=r"lr=interval\(0,1\).*hydra/sweeper=optuna"):
        grid(["lr=interval(0,1)"])
    with pytest.raises(ConfigError, match=r"seeds=2: repeats .* leave out seed"):
        grid(["seed=3"], seeds=2)


def test_a_file_of_trials_is_that_of_any_editor(tmp_path):
    file = tmp_path / "trials.txt"
    file.write_bytes(b"\xef\xbb\xbfo=a \"n='x y'\"\r\n\r\n# none\r\no=b +seed=1\r\n")
    assert list(grid([], trials=str(file)).trials()) == [["o=a", "n='x y'"], ["o=b", "+seed=1"]]
    with pytest.raises(ConfigError, match="sets o, which is swept as well"):
        grid(["o=a,b"], trials=str(file))
    with pytest.raises(ConfigError, match=r"seeds=2.*leave out seed"):
        grid([], trials=str(file), seeds=2)


@pytest.mark.soak
def test_lists_in_step_with_conditions_and_seeds_as_a_person_types_them(place):
    words = [
        "optimizer=sgd,adam", "optimizer.lr=0.1,0.01", "optimizer.momentum=0.5", "hydra.sweeper.seeds=2", "epochs=1",
        "hydra.sweeper.zip=[[optimizer,optimizer.lr]]",
        "hydra.sweeper.conditions=['optimizer.momentum if optimizer=sgd']", "hydra.sweep.dir=grid",
    ]  # fmt: skip
    status, out, err = end(start([*words, "model.hidden=[8]", "wandb.mode=disabled"], place))
    assert status == 0, (out, err)
    sgd = "epochs=1,model.hidden=8,optimizer.lr=0.1,optimizer.momentum=0.5,optimizer=sgd,seed="
    adam = "epochs=1,model.hidden=8,optimizer.lr=0.01,optimizer=adam,seed="
    found = {path.parent.name for path in place.glob("grid/*/summary.json")}
    assert len(found) == 4
    assert {name.rpartition("-")[0] for name in found} == {f"{name}{n}" for name in (sgd, adam) for n in (0, 1)}
