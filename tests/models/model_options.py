"""Options of conf/model and models of them."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from launcher.config.components import build

CONF = Path(__file__).parents[2] / "conf" / "model"


def settings(name: str, **changes) -> dict:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")) | changes


def make(name: str, shape: tuple[int, ...], outputs: int, **changes) -> nn.Module:
    torch.manual_seed(0)
    return build("model", settings(name, **changes), input_shape=shape, num_outputs=outputs)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
