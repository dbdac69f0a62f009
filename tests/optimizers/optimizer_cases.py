"""A small model of every kind of parameter, options of conf/optimizer, and training."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9")
PARAMETRIZED = [pytest.param(name, marks=NEEDS_MUON) if name == "muon" else name for name in OPTIONS]


class Net(nn.Module):
    """One of each: an embedding, a hidden matrix, a convolution, a norm and an output layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.conv(self.embed(tokens).transpose(1, 2)).mean(2)
        return self.out(self.norm(torch.tanh(self.hidden(x))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def option(name: str, **changes):
    return OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes)


def train(model: nn.Module, *optimizers, start: int = 0, stop: int = 12) -> nn.Module:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(11, (16, 5), generator=generator)
        targets = torch.randint(3, (16,), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model


def assert_same(a: nn.Module, b: nn.Module, **tolerance) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
