"""How tensors lie in memory: images with their channels last, and whatever belongs to a parameter as that does."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.core.compat import tree_map_only

POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


def like(pattern: Tensor, value: Tensor) -> Tensor:
    """A tensor with the strides of the one that it stands for: its gradient, momentum or average.

    Fused optimizer kernels pair the elements of storages and not indices: on a CPU a momentum of other strides than its
    parameter is permuted in silence, CUDA's kernels raise. A value with the right strides, or of another shape, is
    given back as it is.
    """
    if value.shape != pattern.shape or value.stride() == pattern.stride():
        return value
    return torch.empty_like(pattern, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `state_dict` gave, maybe contiguous and on the host, as the parameters lie and where they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    laid_out = {
        i: tree_map_only(Tensor, partial(_taken, parameters[i]), of_one) for i, of_one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": laid_out})


def _taken(parameter: Tensor, value: Tensor) -> Tensor:
    """A part of a parameter's state as `load_state_dict` shall keep it.

    That copies what goes to another device or type. What does not, which is a CPU's and everywhere the count of steps
    that is kept on the host, would go on living in the file that it was mapped from.
    """
    laid_out = like(parameter, value)
    stays = value.device == parameter.device or value.dim() == 0
    return laid_out.clone() if laid_out is value and stays else laid_out


def channels_last(value: Any) -> Any:
    """Images [n, channels, height, width] with their channels last in memory; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def lay_out(model: nn.Module, keep_gradients: bool) -> None:
    """Lay the filters of `model` out with their channels last.

    Flattening gives its input a gradient in torch's usual layout, and torch's CPU kernels then go over tensors of two
    layouts an element at a time: a ReLU's backward takes ten times as long, a pooling's three to six. What poolings
    give and what is flattened therefore gets its gradient back as it lies itself with `keep_gradients`. It is of use on
    a CPU: kernels of a GPU do so themselves, and a compiled model has a plan of its own. The values stay the same.
    """
    model.to(memory_format=torch.channels_last)
    for part in model.modules() if keep_gradients else ():
        if isinstance(part, POOLINGS):
            part.register_forward_hook(_keep)
        elif isinstance(part, nn.Flatten):
            part.register_forward_pre_hook(_keep)


def _keep(module: nn.Module, inputs: tuple[Any, ...], *output: Any) -> None:
    """Hook before and after a module: let the gradient of images that lie with their channels last lie so too."""
    for value in output or inputs:
        images = isinstance(value, Tensor) and value.requires_grad and value.dim() == 4
        if images and value.is_contiguous(memory_format=torch.channels_last):
            value.register_hook(channels_last)
