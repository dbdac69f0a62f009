"""Weights of the classes or labels of a loss."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launcher.core.errors import ConfigError

if TYPE_CHECKING:
    from launcher.data.source import Data


def balanced_weights(key: str, data: "Data") -> Tensor:
    """Weights [k] float32 that let every class count the same over the training split: n / (k * count)."""
    if data.task != "classification":
        raise ConfigError(f"loss.{key} is 'balanced', but data of the task {data.task} has no classes to balance.")
    counts = data.class_counts.double()
    if (counts <= 0).any():
        absent = torch.nonzero(counts <= 0).flatten().tolist()
        raise ConfigError(
            f"loss.{key} is 'balanced', but the training split has no sample of class "
            f"{', '.join(map(str, absent))} (counts: {counts.long().tolist()}). "
            f"Give a list of {len(counts)} weights instead."
        )
    return (counts.sum() / (len(counts) * counts)).float()


def listed_weights(key: str, given: Any, num_outputs: int) -> Tensor:
    """Weights [num_outputs] float32 from a list of as many numbers >= 0, else a ConfigError that names the setting."""
    right = f"null, a list of {num_outputs} numbers >= 0" + ("" if key == "pos_weight" else ", or balanced")
    if isinstance(given, str | int | float):
        raise ConfigError(f"loss.{key} is {given!r}: give {right}.")
    try:
        weights = torch.tensor([float(w) for w in given], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss.{key} is {given!r}: give {right}.") from error
    if len(weights) != num_outputs:
        raise ConfigError(f"loss.{key} has {len(weights)} numbers, the data has {num_outputs} outputs: give {right}.")
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ConfigError(f"loss.{key} is {weights.tolist()}: give {right}, finite and not all 0.")
    return weights
