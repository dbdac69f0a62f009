"""A sample of combinations of settings: see combinations.py, which a person runs for longer."""

import itertools
import os
import random
import tempfile
from pathlib import Path

import pytest
from combinations import (
    ELSEWHERE,
    FACTORS,
    NOT_A_FACTOR,
    REFUSED,
    Refusal,
    Runner,
    faults_of,
    is_a_sentence,
    try_out,
)
from processes import REPOSITORY

from launcher.config import composition
from launcher.config.command_line import parse_arguments
from launcher.config.schema import SCHEMA

DEFAULTS = {factor: next(iter(values)) for factor, values in FACTORS.items()}
WORDS = [word for values in FACTORS.values() for words in values.values() for word in words]


@pytest.fixture(scope="module")
def runner():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        yield Runner(Path(directory))


def _report(outcome):
    return "\n".join(f"{command}\n  " + "\n  ".join(found) for command, found in outcome.failures.items())


def test_a_sample_of_combinations():
    """Other ones on each day: a failure prints its command."""
    seed = int.from_bytes(os.urandom(3), "big")
    outcome = try_out(4, seed)
    assert outcome.ran == 4 and outcome.said >= 1
    assert not outcome.failures, f"seed {seed}\n{_report(outcome)}"


@pytest.mark.soak
def test_many_combinations():
    seed = int.from_bytes(os.urandom(3), "big")
    outcome = try_out(40, seed)
    print(seed, outcome.ran, outcome.said, outcome.refusals, outcome.pairs)
    assert not outcome.failures, f"seed {seed}\n{_report(outcome)}"
    assert outcome.pairs[0] > 0.8 * outcome.pairs[1]


@pytest.mark.parametrize(
    ("optimizer", "exact"),
    [
        pytest.param(*pair, marks=() if pair in (("adam", "no"), ("muon", "exact")) else pytest.mark.soak)
        for pair in itertools.product(["sgd", "adam", "adagrad", "rmsprop", "muon"], ["no", "exact"])
    ],
)
def test_channels_last_keeps_what_belongs_to_a_parameter_in_its_layout(optimizer, exact, runner):
    """Resumed, on another number of ranks and by gathered gradients: what a plain loop in the usual layout gives."""
    chosen = {"layout": "channels_last", "optimizer": optimizer, "exact": exact, "scheduler": "constant"}
    assert faults_of(DEFAULTS | chosen, runner, 1) == []


@pytest.mark.soak
@pytest.mark.parametrize("changes", [{"ranks": "2"}, {"ranks": "3"}, {"divergence": "rollback"}], ids=str)
@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "muon", "rmsprop"])
def test_channels_last_on_several_ranks_and_after_a_rollback(optimizer, changes, runner):
    chosen = {"layout": "channels_last", "optimizer": optimizer, "scheduler": "constant", "ema": "ema"}
    assert faults_of(DEFAULTS | chosen | changes, runner, 2) == []


def _fitting(chosen):
    """A combination in which nothing else is wrong."""
    models = {"vectors": "mlp", "numbers": "mlp", "tokens": "transformer", "scenes": "pixels"}
    model = models.get(chosen.get("data"), "cnn")
    data = {"transformer": "tokens", "pixels": "scenes"}.get(chosen.get("model"), "images")
    loss = "mse" if chosen.get("data") == "numbers" else "cross_entropy"
    loss = "auto" if chosen.get("task") in ("masked", "agree") else loss
    return DEFAULTS | {"data": data, "model": model, "loss": loss} | chosen


def test_each_pair_that_is_refused_is_refused_in_a_sentence(runner):
    """What is not refused any more belongs into the array. One of some entries, at random; the soak test takes all."""
    _refused(runner, random.sample(REFUSED, 24), lambda pairs: [random.choice(pairs)])


@pytest.mark.soak
def test_all_pairs_that_are_refused_are_refused_in_a_sentence(runner):
    _refused(runner, REFUSED, list)


def _refused(runner, entries, choose):
    for factor, values, other, others, word in entries:
        for value, second in choose(list(itertools.product(values, others))):
            combination = _fitting({factor: value, other: second})
            with pytest.raises(Refusal) as refusal:
                runner.run(combination, runner.directory / "refused", int(combination["ranks"]))
            sentence = str(refusal.value)
            assert is_a_sentence(sentence) and word in sentence, (factor, value, other, second, sentence)
            assert not (runner.directory / "refused").exists()


def test_every_setting_is_a_factor_or_has_a_reason_not_to_be():
    """A setting that comes new has to be named in combinations.py."""
    with composition.opened(parse_arguments([]), "train") as (hydra, name):
        plain = composition.compose(hydra, name, []).plain()
    single = {key for key, known in SCHEMA.items() if not known.section}
    settings = {*single, *(key for key in plain if not isinstance(plain[key], dict))}
    tried = {word.lstrip("+").partition("=")[0] for word in WORDS}
    unnamed = {
        setting
        for setting in settings - tried
        if setting not in NOT_A_FACTOR and setting.partition(".")[0] not in NOT_A_FACTOR
    }
    assert not unnamed, f"neither a factor nor NOT_A_FACTOR: {sorted(unnamed)}"
    gone = {
        key for key in NOT_A_FACTOR if not any(s == key or s.startswith(f"{key}.") for s in settings | {"max_time"})
    }
    assert not gone, f"no such setting any more: {sorted(gone)}"


@pytest.mark.parametrize("group", ["loss", "model", "optimizer", "scheduler", "strategy", "task"])
def test_every_option_of_a_group_is_tried(group):
    options = {path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml")}
    defaults = {"loss": "cross_entropy", "model": "mlp", "optimizer": "sgd", "scheduler": "cosine", "strategy": "ddp"}
    defaults |= {"task": "auto"}
    tried = {word.removeprefix(f"{group}=") for word in WORDS if word.startswith(f"{group}=")} | {defaults[group]}
    assert options - tried == set(ELSEWHERE.get(group, ())), f"not among the factors: {options - tried}"
