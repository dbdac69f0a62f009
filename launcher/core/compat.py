"""Every private name of torch that the launcher takes, why, and what would be lost without it.

tests/core/test_compat.py notices where one goes.
"""

# ruff: noqa: F401
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# One kernel for a list of tensors, where a loop starts one for each.
from torch import _foreach_add_ as foreach_add_
from torch import _foreach_lerp_ as foreach_lerp_
from torch import _foreach_mul as foreach_mul
from torch import _foreach_mul_ as foreach_mul_
from torch import _foreach_norm as foreach_norm
from torch import _foreach_sign_ as foreach_sign_
from torch import nn

# Memory and shapes of a step without the memory: what torch.compile traces with. Without them and TorchDispatchMode
# `launcher check` would have to try each size on the device.
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

# What torch.autograd.backward ends with; its checks before take 30 us, a twentieth of a small model's step.
from torch.autograd.graph import _engine_run_backward as engine_run_backward

# torch.utils.checkpoint wraps calls, and not modules: names in the state dict would have to be mended by hand.
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

# A batch is a tree of dicts, lists, tuples and whatever else torch knows as one. torch.utils has no public name for its
# own trees; optree would be one more dependency, and would not know what libraries have registered with torch.
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


def set_group_timeout(timeout: timedelta) -> None:
    """Let the collectives of the process group that there is take longer than its making.

    Public from torch 2.14 on. Without it ranks would wait for each other to come as long as a collective may take.
    """
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(timeout)


def ddp_timings(ddp: DistributedDataParallel) -> dict[str, Any]:
    """What DDP measures of every hundredth step or so, in ns.

    Nothing else knows how long the ranks wait for each other in a backward; without it that counts as computing.
    """
    timings: dict[str, Any] = ddp._get_ddp_logging_data()
    return timings


def own_tensors(module: nn.Module) -> tuple[MutableMapping[str, Any], MutableMapping[str, Any]]:
    """The parameters and the buffers that belong to a module itself, to put others in their place.

    setattr would go by what a module makes of it: recurrent ones and parametrized ones have a way of their own.
    """
    return module._parameters, module._buffers


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether somebody has registered a hook around the step of an optimizer, which has to be called as usual then."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def count_step(optimizer: Optimizer) -> None:
    """Tell a schedule that its optimizer was called, where its step is called past the wrapper that would tell it."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
