"""What a run begins with: weights of another run or a file, and parameters that stay as they are."""

import copy

import pytest
import torch
from kill_loop import NETS, newest, place
from processes import summary, train
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.core.errors import ConfigError
from launcher.training.checkpoint import write_checkpoint
from launcher.training.finetune import freeze, load_weights

WORDS = [
    "data._target_=own.load", "batch.global_size=14", "threads=1", "hydra.run.dir=run", "scheduler=constant",
    "optimizer=adamw", "optimizer.lr=0.01", "eval_every=5", "checkpoint.every=null",
]  # fmt: skip


def net(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, outputs))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_beside_which_adapters_were_trained_are_refused(tmp_path):
    """Else the layers that were adapted would begin anew, and only the log would say so."""
    content = {name.replace("0.", "0.base_layer."): tensor for name, tensor in net().state_dict().items()}
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"init_from=.* has adapters, .* launcher export run_dir=RUN output=MERGED"):
        load_weights(net(), str(tmp_path))


def test_what_fits_is_taken_and_the_rest_is_named(tmp_path):
    given = net(outputs=7, seed=1).state_dict()
    del given["1.running_mean"]
    save_file(given | {"extra": torch.zeros(2)}, tmp_path / "w.safetensors")
    model, before = net(), net().state_dict()
    loaded = load_weights(model, str(tmp_path / "w.safetensors"))
    after = model.state_dict()
    fitting = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_var", "1.num_batches_tracked"]
    assert sorted(loaded.matched) == sorted(fitting)
    assert loaded.missing == ["1.running_mean"] and loaded.unexpected == ["extra"]
    assert sorted(name.split()[0] for name in loaded.reshaped) == ["3.bias", "3.weight"]
    for name in after:
        assert torch.equal(after[name], given[name] if name in fitting else before[name]), name
    assert "6 tensors from" in str(loaded) and "3.weight (7x4, the model has 3x4)" in str(loaded)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"model._orig_mod.{n}": v for n, v in state.items()}, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    ],
    ids=["plain", "DDP", "Lightning, compiled", "model and optimizer"],
)
def test_files_as_others_write_them(wrap, tmp_path):
    given, model = net(seed=1).state_dict(), net()
    torch.save(wrap(given), tmp_path / "w.pth")
    loaded = load_weights(model, str(tmp_path / "w.pth"))
    assert same(model.state_dict(), given)
    assert not (loaded.missing or loaded.unexpected or loaded.reshaped)


def test_a_name_as_it_stands_counts_more_than_one_behind_a_prefix(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)
            self.weight = nn.Parameter(torch.zeros(2, 2))

    outer, given = Outer(), {"model.weight": torch.ones(2, 2), "weight": torch.full((2, 2), 3.0)}
    save_file(given, tmp_path / "w.safetensors")
    loaded = load_weights(outer, str(tmp_path / "w.safetensors"))
    assert (outer.model.weight == 1).all() and (outer.weight == 3).all() and loaded.missing == ["model.bias"]


def test_a_run_directory_means_its_best_checkpoint_else_its_newest(tmp_path):
    states = {step: net(seed=step).state_dict() for step in (5, 10, 15)}
    for best in (None, 10):
        for step, state in states.items():
            write_checkpoint(tmp_path / f"{best}/checkpoints", step, state, {"progress": {"best_step": best}})
        model = net()
        loaded = load_weights(model, str(tmp_path / f"{best}"))
        assert same(model.state_dict(), states[best or 15]) and f"step_{best or 15:08d}" in str(loaded)
        again = net()
        load_weights(again, str(loaded.file.parent))  # a checkpoint itself, as any directory with a model.safetensors
        assert same(again.state_dict(), states[best or 15])


def test_sources_that_cannot_serve(tmp_path):
    save_file({"elsewhere": torch.zeros(3)}, tmp_path / "other.safetensors")
    torch.save(net(), tmp_path / "module.pt")  # a whole pickled module, which would have to be executed
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "damaged/checkpoints", 1, net().state_dict(), {"progress": {"best_step": None}})
    (tmp_path / "damaged/checkpoints/step_00000001/state.pt").write_bytes(b"")
    for name, text in {
        "other.safetensors": "no tensor.*elsewhere.*0.weight",
        "module.pt": "nothing in it is executed .*torch.nn.modules.container.Sequential",
        "list.pt": "holds a list",
        "torn.safetensors": "cannot be read",
        "torn.pt": "cannot be read",
        "empty": "no weights are there",
        "absent": "no weights are there",
        "damaged": "damaged",
    }.items():
        with pytest.raises(ConfigError, match=rf"init_from=.*{name}: .*{text}"):
            load_weights(net(), str(tmp_path / name))


def test_frozen_parameters_have_no_gradient_and_a_frozen_batchnorm_measures_nothing():
    model, reference = net(), net()
    assert freeze(model, ["0.*", "1.*"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    model = copy.deepcopy(model)  # as the moving average is made
    reference[0].requires_grad_(False)
    inputs = torch.randn(8, 5)
    for one in (model, reference):
        one.eval()
        one.train()
        reference[1].eval()  # what plain PyTorch needs after each train()
        one(inputs).sum().backward()
    assert same(model.state_dict(), net().state_dict()), "the statistics stand still"
    assert model[0].weight.grad is None and torch.equal(model[3].weight.grad, reference[3].weight.grad)
    assert not model[1].training and model[3].training

    model = net()
    assert freeze(model, ["1.weight", "1.bias"]) == ["1.weight", "1.bias"]
    assert model.train()[1].training, "its statistics are not named: it goes on measuring"
    with pytest.raises(ConfigError, match=r"freeze: layer.\* matches no parameter. There are: 0.weight, 0.bias"):
        freeze(net(), ["0.*", "layer.*"])


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_begins_with_weights_keeps_what_is_frozen_and_resumes_without_the_file(world, tmp_path):
    """Stopped at step 7 and gone on without the file: the bits of a run that went through."""
    words = [*WORDS, "model._target_=own.Net", "init_from=w.pt", "freeze=[body.*]", "ema_decay=0.9"]
    given = {"body.0.weight": torch.randn(8, 5), "body.0.bias": torch.randn(8), "body.1.weight": torch.rand(8)}
    given |= {"body.1.running_mean": torch.randn(8), "head.weight": torch.randn(9, 8)}
    ends = {}
    for name, lengths in {"whole": [12], "parts": [7, 12]}.items():
        directory = place(tmp_path / name, NETS)
        torch.save(given, directory / "w.pt")
        for length in lengths:
            run = train([*words, f"max_steps={length}"], directory, world, name=f"io{length}").ok()
            log = run.out()
            assert ("4 tensors from w.pt" in log) == (length == lengths[0]), log
            assert "frozen     body.0.weight, body.0.bias, body.1.weight, body.1.bias" in log
            if length == lengths[0]:
                assert (
                    "missing: body.1.bias, body.1.running_var" in log and "head.weight (9x8, the model has 3x8)" in log
                )
            (directory / "w.pt").unlink(missing_ok=True)
        assert summary(directory / "run")["status"] == "finished"
        state = torch.load(newest(directory) / "state.pt", weights_only=True)
        assert sum(len(group["params"]) for group in state["optimizer"]["param_groups"]) == 2, "weight and bias of head"
        averaged = load_file(newest(directory) / "model.safetensors")
        ends[name] = state["model"] | {f"averaged.{n}": value for n, value in averaged.items()}
    for name in ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.running_mean"):
        assert torch.equal(ends["whole"][name], given[name]), name
        assert torch.equal(ends["whole"][f"averaged.{name}"], given[name]), name
    assert ends["whole"]["body.1.num_batches_tracked"] == 0
    assert same(ends["whole"], ends["parts"])
