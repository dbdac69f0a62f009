"""Options of conf/loss and small data for them."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from launcher.data import Data, TensorSplit
from launcher.losses.per_sample import PerSample

CONF = Path(__file__).parents[2] / "conf" / "loss"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
WEIGHTS = [0.2, 1.0, 3.0, 0.0]


def classes(labels=(0, 0, 0, 0, 1, 1, 2, 2, 2, 3), k: int = 4) -> Data:
    part = TensorSplit(torch.zeros(len(labels), 2), torch.tensor(labels))
    return Data("labels", "classification", (2,), k, part, part, part)


def numbers(d: int = 3, targets: torch.Tensor | None = None) -> Data:
    part = TensorSplit(torch.zeros(10, 2), torch.rand(10, d) if targets is None else targets)
    return Data("numbers", "regression", (2,), d, part, part, part)


def option(name: str, **changes):
    return OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes)


def mean_of_parts(loss: PerSample, outputs, targets, splits=(5, 3, 2)) -> torch.Tensor:
    """The mean as the engine takes it: sums over ragged micro-batches, one division at the end."""
    total, weight = 0.0, 0.0
    for part_outputs, part_targets in zip(outputs.split(splits), targets.split(splits), strict=True):
        values, weights = loss(part_outputs, part_targets)
        assert values.shape == (len(part_targets),) and values.dtype == torch.float32
        total = total + values.sum()
        weight = weight + (len(values) if weights is None else weights.sum())
    return total / weight
