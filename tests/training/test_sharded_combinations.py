"""A model in parts, together with every other option of training: the losses of DDP, and the same bits after a stop."""

import pytest
import torch
from kill_loop import OWN, RUN, newest, place, same_bits
from processes import rows, summary, train
from safetensors.torch import load_file

# A frozen BatchNorm, blocks with dropout that are computed again, a head. FAULT=31: rank 1 stops in its 31st forward.
CODE = (
    OWN
    + """
import os, signal, time
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.inner, self.drop = nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(0.2)

    def forward(self, x):
        return x + self.drop(torch.tanh(self.inner(self.norm(x))))

class Net(nn.Module):
    calls = 0

    def __init__(self, in_features, num_outputs, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(in_features, width, bias=False), nn.BatchNorm1d(width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x):
        self.calls += self.training
        if self.training and os.environ["RANK"] == "1" and self.calls == int(os.environ.get("FAULT", "0")):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

class Looking(Net):
    def __init__(self, in_features, num_outputs):
        super().__init__(in_features, num_outputs)
        self.spread = self.head.weight.std().item()
"""
)
CHANGED = ("epochs", "clip_grad_norm", "ema_decay", "loss", "model", "log_every")
WORDS = [word for word in RUN if not word.startswith(CHANGED)]
WORDS += ["epochs=4", "log_every=1", "model._target_=own.Net", "init_from=w.pt"]
STEPS = 20
TOGETHER = {
    "fine-tuned": ["mixup.alpha=0.4", "freeze=[stem.*,blocks.0.*]", "layer_decay=0.7", "clip_grad_value=0.02",
                   "log_grad_norm=true", "ema_decay=0.9"],
    "recomputed": ["activation_checkpointing=[blocks.*]", "clip_grad_norm=0.5", "freeze=[stem.1.*]", "loss=focal",
                   "loss.alpha=balanced", "strategy.accumulate_whole=true"],
    "built everywhere": ["strategy.meta_init=false", "strategy.block=Block", "activation_checkpointing=[blocks.1]",
                         "layer_decay=0.5", "sampling=balanced", "log_grad_norm=true", "ema_decay=0.5",
                         "mixup.alpha=1.0"],
}  # fmt: skip


def _place(directory):
    place(directory, CODE)
    torch.manual_seed(9)
    names = {}
    exec(CODE, names)
    torch.save(names["Net"](5, 3).state_dict(), directory / "w.pt")
    return directory


@pytest.mark.soak
@pytest.mark.parametrize("words", TOGETHER.values(), ids=TOGETHER)
def test_losses_norms_and_weights_are_those_of_ddp_and_a_stop_costs_no_bit(words, tmp_path):
    """Three micro-batches an update; each option changes the losses where it is left out, so none is ignored."""
    ddp, fsdp, stopped = (_place(tmp_path / name) for name in ("ddp", "fsdp", "stopped"))
    train([*WORDS, *(word for word in words if not word.startswith("strategy"))], ddp, 2).ok()
    sharded = [*WORDS, "strategy=fsdp", *words]
    calm = train(sharded, fsdp, 2).ok()
    assert "sharded    3 blocks" in calm.out() and "meta" not in calm.err(0) + calm.err(1)
    for row, expected in zip(rows(fsdp / "run"), rows(ddp / "run"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(rows(ddp / "run")) == STEPS and all("train/grad_norm" in row for row in rows(ddp / "run"))
    one, other = (load_file(newest(directory) / "model.safetensors") for directory in (fsdp, ddp))
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5, msg=name)

    train(sharded, stopped, 2, {"FAULT": "28"}, name="io0").ok()
    assert 5 < summary(stopped / "run")["step"] < STEPS and (stopped / "run/stopped.json").exists()
    train(sharded, stopped, 2, name="io1").ok()
    same_bits(fsdp, stopped)


@pytest.mark.soak  # the other rank waits 3 s for rank 0 to speak
def test_a_model_that_looks_at_its_weights_is_refused_by_every_rank_before_anything_is_made(tmp_path):
    run = train([*WORDS, "model._target_=own.Looking", "strategy=fsdp"], _place(tmp_path), 2).wait()
    assert run.status == [2, 2] and "Traceback" not in run.err()
    assert run.err().startswith("error: strategy.meta_init=true: this model cannot be built")
    assert not (tmp_path / "run").exists()
