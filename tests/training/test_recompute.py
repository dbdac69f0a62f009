"""Activation checkpointing: the same bits with dropout, less memory, checkpoints that know nothing of it."""

import pytest
import torch
from kill_loop import OWN, RUN, newest, place, same_bits
from processes import summary, train
from safetensors.torch import load_file
from torch import nn

from launcher.core.errors import ConfigError
from launcher.training.recompute import recompute

DEEP = (
    OWN
    + """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.dropout(torch.tanh(torch.nn.functional.gelu(x * self.scale)))

class Deep(nn.Module):
    def __init__(self, in_features, num_outputs, width=8, depth=3):
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.last = nn.Linear(width, num_outputs)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)
"""
)
OTHER = ("model.", "epochs", "scheduler")
WORDS = [*(w for w in RUN if not w.startswith(OTHER)), "model._target_=own.Deep", "epochs=4", "scheduler=constant"]
AGAIN = "activation_checkpointing=[blocks.*]"


@pytest.mark.soak
@pytest.mark.parametrize("world", [1, 2])
def test_with_dropout_and_a_moving_average_the_same_bits_also_where_it_is_switched_on_in_between(world, tmp_path):
    plain, again = (place(tmp_path / name, DEEP) for name in ("plain", "again"))
    train(WORDS, plain, world).ok()
    train([*WORDS, AGAIN], again, world).ok()
    same_bits(plain, again)
    names = load_file(newest(again) / "model.safetensors").keys()
    assert "blocks.1.scale" in names and not any("checkpoint" in name for name in names)
    if world == 1:
        mixed = place(tmp_path / "mixed", DEEP)
        train([*WORDS, "max_steps=9"], mixed).ok()
        train([*WORDS, AGAIN], mixed, name="io1").ok()
        first, second = (load_file(newest(one) / "model.safetensors") for one in (mixed, plain))
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.soak
def test_it_needs_less_memory(tmp_path):
    """24 blocks of activations of 8 MB, of each of which autograd keeps four: 0.75 GB against 0.2."""
    words = ["data._target_=own.load", "+data.n=512", "model._target_=own.Deep", "+model.width=4096", "+model.depth=24",
             "batch.global_size=512", "epochs=2", "threads=1", "eval_every=null", "checkpoint.every=null",
             "hydra.run.dir=run"]  # fmt: skip
    peaks = {}
    for name, more in {"plain": [], "again": [AGAIN]}.items():
        train([*words, *more], place(tmp_path / name, DEEP)).ok()
        peaks[name] = summary(tmp_path / name / "run")["peak_memory_mb"]
    assert peaks["plain"] - peaks["again"] > 300, peaks


def _kept(model, inputs):
    """Bytes that autograd keeps for the backward, of memory that is not the parameters'."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def pack(tensor):
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(inputs)
    outputs.sum().backward()
    return sum(seen.values())


def test_of_modules_within_each_other_the_outermost_is_wrapped_and_gradients_are_equal():
    def model():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Dropout(0.5), nn.Tanh())) for _ in range(3)]
        return nn.Sequential(nn.Linear(4, 6), nn.Sequential(*blocks), nn.Linear(6, 2))

    plain, again = model(), model()
    assert recompute(again, ["1.*"]) == ["1.0", "1.1", "1.2"]
    assert again.state_dict().keys() == plain.state_dict().keys()
    inputs, kept = torch.randn(32, 4), {}
    for name, one in {"plain": plain, "again": again}.items():
        torch.manual_seed(7)
        kept[name] = _kept(one, inputs)
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert kept["again"] < 0.65 * kept["plain"], kept


def test_running_statistics_would_be_updated_twice():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"activation_checkpointing: 0 holds a BatchNorm1d.*twice"):
        recompute(model, ["0"])
    model[0][1].eval()  # as finetune.freeze leaves it
    assert recompute(model, ["0"]) == ["0"]
    with pytest.raises(ConfigError, match=r"blocks.\* matches no module. There are: 0, "):
        recompute(model, ["blocks.*"])
