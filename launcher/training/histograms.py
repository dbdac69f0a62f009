"""Histograms of tensors as wandb.watch makes them, without W&B in the process that trains."""

from collections.abc import Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from launcher.distributed.numerics import in_any_order

BINS = 64  # as wandb.watch has them
EXACT = 1 << 24  # ones that float32, in which histc counts, adds up exactly
WRAPPED = "_checkpoint_wrapped_module."  # what activation checkpointing puts into names


def of_model(model: nn.Module, which: str) -> dict[str, list[float]]:
    """See `of_tensors`: of `gradients`, `parameters` or `all` of a bare model, named as wandb.watch names them.

    wandb.watch itself sees the gradient of one micro-batch on one device. These are of the gradient of the global
    batch, as the optimizer has just taken it (clipped, where it is), and of the weights after the update.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        name = name.replace(WRAPPED, "")
        if which != "parameters" and parameter.grad is not None:
            named[f"gradients/{name}"] = parameter.grad
        if which != "gradients":
            named[f"parameters/{name}"] = parameter.detach()
    return of_tensors(named)


def of_tensors(named: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """A histogram of each tensor, of its finite elements; the device is waited for twice, however many they are.

    Returns:
        Per name the lower end of the first bin, the upper end of the last one, and the counts of BINS bins of equal
        width; or one count where all elements are equal. Nothing for a tensor without finite elements.
    """
    named = {name: tensor for name, tensor in named.items() if tensor.numel()}
    if not named:
        return {}
    ends = torch.stack([_ends(tensor) for tensor in named.values()]).tolist()
    counts = {}
    for (name, tensor), (low, high) in zip(named.items(), ends, strict=True):
        if low < high:  # what lies outside, such as infinity, counts nowhere
            counts[name] = low, high, _counts(tensor.reshape(-1).float(), low, high)
        elif low == high:
            counts[name] = low, high, tensor.isfinite().sum()[None]
    if not counts:
        return {}
    found = iter(torch.cat([count for *_, count in counts.values()]).tolist())
    return {name: [low, high, *islice(found, len(count))] for name, (low, high, count) in counts.items()}


def _counts(values: Tensor, low: float, high: float) -> Tensor:
    """[BINS] int64 counts of float32 values [n], in bins of equal width."""
    with in_any_order():
        pieces = [piece.histc(BINS, low, high).long() for piece in values.split(EXACT)]
    return pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(0)


def _ends(tensor: Tensor) -> Tensor:
    """[2] smallest and largest of the finite elements, float32; infinity and minus infinity where there are none."""
    values = tensor.float()
    finite = values.isfinite()
    return torch.stack([values.where(finite, torch.inf).min(), values.where(finite, -torch.inf).max()])
