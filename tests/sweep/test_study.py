import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from launcher.core.errors import ConfigError
from launcher.sweep.space import space_of
from launcher.sweep.study import FILE, NAME, SAMPLERS, Study

WORDS = ["x=interval(-2,2)", "y=tag(log,interval(0.01,1))", "n=range(1,9,2)", "o=a,b"]


def study(path, sampler="tpe", seed=1, modes=("min",), words=WORDS, described=None, **options):
    space = space_of(OverridesParser.create().parse_overrides(words))
    return Study(path, space, sampler, options, seed, modes, described or {"sampler": sampler})


def value_of(values):
    return (values["x"] - 1) ** 2 + values["y"] + values.get("n", 0) + (values.get("o") == "b")


def told(path, count, reopened, **how):
    """The values of trials that are asked for and told; as a process has them that is `reopened` after each step."""
    opened = study(path, **how)
    for _ in range(count):
        opened = study(path, **how) if reopened else opened
        trial = opened.ask({})
        opened = study(path, **how) if reopened else opened
        opened.tell(trial.number, [value_of(trial.params)] * len(how.get("modes", "1")), [3.0, 2.0])
    return [trial.params for trial in opened.trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_process_that_begins_anew_chooses_what_the_one_before_would_have(sampler, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    how = {"sampler": sampler, "words": WORDS[:2]} if sampler == "cmaes" else {"sampler": sampler}
    count = 11 if sampler == "gp" else 14
    found = told(tmp_path / "a", count, False, **how)
    assert found == told(tmp_path / "b", count, True, **how)
    assert len({tuple(values.items()) for values in found}) == count, "none comes twice"


def test_a_sampler_learns(tmp_path):
    found = [value_of(values) for values in told(tmp_path, 40, False)]
    assert sum(found[20:]) < 0.7 * sum(found[:20])


def test_a_quasi_random_sequence_is_optunas_own(tmp_path):
    space = space_of(OverridesParser.create().parse_overrides(WORDS[:2])).distributions
    sampler = optuna.samplers.QMCSampler(seed=1, scramble=True)
    own = optuna.create_study(sampler=sampler)
    expected = []
    for _ in range(6):
        trial = own.ask(space)
        own.tell(trial, 0.0)
        expected.append(trial.params)
    found = told(tmp_path, 6, True, sampler="qmc", words=WORDS[:2])
    assert found[1:] == expected[1:]  # the first of a sequence is drawn at random, by another generator


@pytest.mark.versions
def test_optuna_reads_it(tmp_path):
    opened = study(tmp_path, modes=("min", "max"))
    for number in range(4):
        assert opened.ask({}).number == number
    opened.tell(0, [1.0, 2.0], [0.5])
    opened.tell(1, None, why="a wheel came off")
    opened.tell(2, None, [4.0, float("nan"), 3.0], pruned=True)
    read = optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(tmp_path / FILE))))
    states = [trial.state.name for trial in read.trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED", "RUNNING"]
    assert read.trials[0].values == [1.0, 2.0] and read.trials[1].user_attrs["why"] == "a wheel came off"
    assert read.trials[2].intermediate_values == {1: 4.0, 3: 3.0}
    assert [direction.name for direction in read.directions] == ["MINIMIZE", "MAXIMIZE"]


def test_a_torn_line_is_as_if_it_had_not_been_written(tmp_path):
    opened = study(tmp_path)
    first, second = opened.ask({}), opened.ask({})
    whole = (tmp_path / FILE).read_bytes()
    end = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (end + 1, (end + len(whole)) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:cut])
        again = study(tmp_path)
        assert [trial.params for trial in again.trials] == [first.params]
        assert again.ask({}).params == second.params


def test_pruned_trials_teach_the_sampler(tmp_path):
    """One that waits for its promotion counts as pruned: else TPE would learn of the few that finish alone."""
    for name, waiting in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        opened, curves = study(tmp_path / name), {}
        for _ in range(14):
            trial = opened.ask({number: (waiting, curve) for number, curve in curves.items()})
            curves[trial.number] = [value_of(trial.params)]
    chosen = [[trial.params for trial in study(tmp_path / name).trials] for name in "ab"]
    assert chosen[0][:10] == chosen[1][:10] and chosen[0][10:] != chosen[1][10:]


def test_another_search_is_refused(tmp_path):
    study(tmp_path)
    with pytest.raises(ConfigError, match="sampler: tpe -> random"):
        study(tmp_path, sampler="random")
    with pytest.raises(ConfigError, match=r"sampler=tpe: .*multivariat"):
        study(tmp_path, multivariat=True)


def test_what_is_no_journal_is_said(tmp_path):
    (tmp_path / FILE).write_text("this is\nno journal\n")
    with pytest.raises(ConfigError, match=r"study\.log: is no journal"):
        study(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(ConfigError, match=r"study\.log: the search cannot be written there \(Is a directory"):
        study(tmp_path)


def test_what_another_sweep_has_found_is_known(tmp_path):
    opened = study(tmp_path, words=WORDS[:2])
    assert opened.add({"x": 1.0, "y": 0.1}, [0.1], "other/a")
    assert not opened.add({"x": 3.0, "y": 0.1}, [0.1], "other/b"), "outside of the space"
    assert [trial.user_attrs["from"] for trial in opened.trials] == ["other/a"]
    assert opened.ask({}).number == 1
