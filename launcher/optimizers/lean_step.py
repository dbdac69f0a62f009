"""An optimizer without what torch wraps around its methods."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from launcher.core import compat


def lean_step(optimizer: Optimizer) -> Callable[[], Any]:
    """The optimizer's step without what torch wraps around it, wherever that does nothing.

    Its profiler hook costs 60 us a call on a CPU, a tenth of a small model's step; the wrapper below it, which switches
    gradients off, imports torch's compiler. An optimizer with hooks, or differentiable, is called as everybody does.
    """
    step: Any = type(optimizer).step
    as_usual = compat.has_step_hooks(optimizer) or optimizer.defaults.get("differentiable")
    if as_usual or not getattr(step, "hooked", False):
        return optimizer.step
    step = step.__wrapped__
    if getattr(step, "__code__", None) is not None and step.__code__.co_name == "_use_grad":
        step = torch.no_grad()(step.__wrapped__)
    compat.count_step(optimizer)
    return functools.partial(step, optimizer)


def spare_the_compiler() -> None:
    """Keep torch from importing its compiler (1.2 s) only to switch it off inside the optimizer's own methods.

    Nothing here is called from compiled code: a model is compiled, its optimizer is not. Where torch has no such
    mark any more, it imports the compiler as before.
    """
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None and getattr(method, "__dynamo_disable", None) is None:
            method.__dynamo_disable = method
