"""adapter.only beside the same run whose checkpoints hold all weights: the same bits, killed or not."""

import signal

import pytest
import torch
from killed_net import KILLED
from processes import rows, train
from safetensors.torch import load_file, save_file
from torch import nn

import launcher
from launcher.core.errors import ConfigError
from launcher.models.adapters import adapt
from launcher.training.finetune import load_weights
from launcher.training.frozen_base import digest_of, find_base

pytest.importorskip("peft")
LORA = {"name": "lora", "rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear", "modules_to_save": None}
SETTINGS = {"adapter": LORA | {"only": True}, "init_from": "RUN", "model": {}}


def adapted(read):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 2))
    model.read_names = frozenset(read)
    adapt(model, LORA, {"num_outputs": 2})
    return model


def test_what_was_read_and_stays_is_left_out_and_nothing_else():
    model = adapted(["0.weight", "0.bias", "1.weight", "1.running_mean", "2.weight", "3.weight", "3.bias"])
    base = find_base(model, SETTINGS, True)
    assert base.names == {"0.base_layer.weight", "0.base_layer.bias", "1.weight", "2.base_layer.weight"}
    assert find_base(model, SETTINGS | {"adapter": LORA}, True).names == frozenset(), "a run from before it was there"
    base.check(find_base(model, SETTINGS, True).digest, "RUN")
    with torch.no_grad():
        model[0].lora_A["default"].weight.add_(1)  # which training does, to this and to the statistics
        model(torch.randn(3, 4))
        base.check(digest_of(model, base.names), "RUN")
        model[2].base_layer.weight[4, 5] += 1e-6
    with pytest.raises(ConfigError, match=r"init_from=RUN are not those that THIS was trained beside"):
        base.check(digest_of(model, base.names), "THIS")


def test_random_numbers_are_no_base():
    with pytest.raises(ConfigError, match=r"adapter\.only=true: .* random numbers, .* or use adapter\.only=false"):
        find_base(adapted(["3.weight"]), SETTINGS, True)


def test_another_name_of_a_tied_parameter_is_left_out_too():
    model = nn.Module()
    model.first, model.second, model.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
    model.second.weight, model.read_names = model.first.weight, {"first.weight"}
    model.first.requires_grad_(False)
    assert find_base(model, SETTINGS, True).names == {"first.weight", "second.weight"}


RUN = [
    "data=iris", "model._target_=own_net.Net", "model.hidden=[16,8]", "init_from=base", "adapter=lora",
    "adapter.rank=2", "optimizer=adamw", "optimizer.lr=0.05", "ema_decay=0.8", "batch.global_size=16", "epochs=3",
    "log_every=1", "eval_every=3", "checkpoint.every=3", "checkpoint.keep=9", "threads=1",
]  # fmt: skip
ONLY = [*RUN, "adapter.only=true"]


def write_base(place, scale=1.0):
    from launcher.models.mlp import MLP

    torch.manual_seed(3)
    place.mkdir(exist_ok=True)
    model = MLP((4,), 3, [16, 8], "relu", 0.0)
    save_file({name: one * scale for name, one in model.state_dict().items()}, place / "model.safetensors")


def killed_and_resumed(place, name, world, *more):
    words = [*ONLY, *more, f"hydra.run.dir={name}"]
    killed = train(words, place, world, {"KILL": "20"}, name=f"io-{name}").wait()
    assert -signal.SIGKILL in killed.status and any((place / name / "checkpoints").glob("step_*"))
    train(words, place, world, name=f"io-{name}-on").ok()
    return place / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("frozen_base")
    (directory / "own_net.py").write_text(KILLED)
    write_base(directory / "base")
    train([*RUN, "hydra.run.dir=full"], directory, name="io-full").ok()
    return directory


@pytest.fixture(scope="module")
def only(place):
    return killed_and_resumed(place, "only", 1)


def weights(run):
    return load_file(max((run / "checkpoints").glob("step_*")) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.soak
def test_killed_it_ends_with_the_bits_of_a_run_that_saves_everything(place, only):
    assert rows(only) == rows(place / "full")
    saved, expected = weights(only), weights(place / "full")
    frozen = {f"layers.{i}.base_layer.{leaf}" for i in (1, 3) for leaf in ("weight", "bias")}
    assert frozen < expected.keys()
    assert same(saved, {name: one for name, one in expected.items() if name not in frozen})


@pytest.mark.soak
def test_shared_among_devices_and_killed_it_learns_the_same(place):
    run = killed_and_resumed(place, "fsdp", 2, "strategy=fsdp")
    for row, expected in zip(rows(run), rows(place / "full"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not any("base_layer" in name for name in weights(run))


@pytest.mark.soak
def test_it_is_loaded_beside_its_base_and_no_other(place, only, monkeypatch):
    monkeypatch.syspath_prepend(place)
    loaded = launcher.load(only, "last").model  # from elsewhere: init_from=base lies where the run was started
    monkeypatch.chdir(place)
    assert same(loaded.state_dict(), launcher.load("full", "last").model.state_dict())
    with pytest.raises(ConfigError, match=r"has adapters, such as layers\.1\.lora_A"):
        load_weights(nn.Linear(2, 2), "only")
    before = sorted(only.rglob("*"))
    write_base(place / "base", 1.0000002)
    try:
        resumed = train([*ONLY, "hydra.run.dir=only"], place, name="io-other").wait()
        assert resumed.status == [2] and "init_from=base are not those that" in resumed.err()
        with pytest.raises(ConfigError, match=r"init_from=base are not those that .*only/.* was trained beside"):
            launcher.load("only")
    finally:
        write_base(place / "base")
    assert sorted(only.rglob("*")) == before
