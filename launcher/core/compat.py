"""Every private name of Python, torch and W&B that the launcher takes, why, and what would be lost without it.

tests/core/test_compat.py notices where one goes. Names of torch are imported when they are asked for: what needs none
starts without torch.
"""

import atexit
import importlib
import os
import signal
import subprocess
from collections.abc import Callable, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeCopyMode as FakeCopyMode
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper as checkpoint_wrapper
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._pytree import tree_leaves as tree_leaves
    from torch.utils._pytree import tree_map as tree_map
    from torch.utils._pytree import tree_map_only as tree_map_only

    engine_run_backward: Any
    foreach_add_: Any
    foreach_lerp_: Any
    foreach_mul: Any
    foreach_mul_: Any
    foreach_norm: Any
    foreach_sign_: Any

OF_TORCH = {  # a name here: its module, and its name there
    # A batch is a tree of dicts, lists, tuples and whatever else torch knows as one. torch.utils has no public name for
    # its own trees; optree would be one more dependency, and would not know what libraries have registered with torch.
    "tree_leaves": ("torch.utils._pytree", "tree_leaves"),
    "tree_map": ("torch.utils._pytree", "tree_map"),
    "tree_map_only": ("torch.utils._pytree", "tree_map_only"),
    # Memory and shapes of a step without the memory: what torch.compile traces with. Without them `launcher check`
    # would have to try each size on the device.
    "FakeTensorMode": ("torch._subclasses.fake_tensor", "FakeTensorMode"),
    "FakeCopyMode": ("torch._subclasses.fake_tensor", "FakeCopyMode"),
    "TorchDispatchMode": ("torch.utils._python_dispatch", "TorchDispatchMode"),
    # torch.utils.checkpoint wraps calls, and not modules: names in the state dict would have to be mended by hand.
    "checkpoint_wrapper": ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "checkpoint_wrapper"),
    # What torch.autograd.backward ends with; its checks before take 30 us, a twentieth of a small model's step.
    "engine_run_backward": ("torch.autograd.graph", "_engine_run_backward"),
    # One kernel for a list of tensors, where a loop starts one for each.
    "foreach_add_": ("torch", "_foreach_add_"),
    "foreach_lerp_": ("torch", "_foreach_lerp_"),
    "foreach_mul": ("torch", "_foreach_mul"),
    "foreach_mul_": ("torch", "_foreach_mul_"),
    "foreach_norm": ("torch", "_foreach_norm"),
    "foreach_sign_": ("torch", "_foreach_sign_"),
}


def __getattr__(name: str) -> Any:
    """A name of torch, imported when it is asked for."""
    if name not in OF_TORCH:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    module, private = OF_TORCH[name]
    return getattr(importlib.import_module(module), private)


# --- Python ----------------------------------------------------------------------------------------------------------


def run_exit_functions() -> None:
    """Run what was registered with atexit, before os._exit, which does not.

    A rank of several ends by that, as torch's threads at times abort a process that unloads. Without this, temporary
    directories would stay, and Accelerate's and W&B's own endings would be left out.
    """
    atexit._run_exitfuncs()


def stop_fork_server() -> None:
    """End the process that others are forked from, where there is one, and what cleans up after it.

    Left alone it would stay, with torch in its memory, until every process that was forked from it has ended.
    """
    from multiprocessing import forkserver, resource_tracker

    server: Any = forkserver._forkserver
    if (pid := getattr(server, "_forkserver_pid", None)) is not None:
        os.kill(pid, signal.SIGKILL)  # it does not take another
        server._stop()
    tracker: Any = resource_tracker._resource_tracker
    tracker._stop()


# --- torch -----------------------------------------------------------------------------------------------------------


def set_group_timeout(timeout: timedelta) -> None:
    """Let the collectives of the process group that there is take longer than its making.

    Public from torch 2.14 on. Without it ranks would wait for each other to come as long as a collective may take.
    """
    import torch.distributed as dist

    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(timeout)


def ddp_timings(ddp: "DistributedDataParallel") -> dict[str, Any]:
    """What DDP measures of every hundredth step or so, in ns.

    Nothing else knows how long the ranks wait for each other in a backward; without it that counts as computing.
    """
    timings: dict[str, Any] = ddp._get_ddp_logging_data()
    return timings


def own_tensors(module: "nn.Module") -> tuple[MutableMapping[str, Any], MutableMapping[str, Any]]:
    """The parameters and the buffers that belong to a module itself, to put others in their place.

    setattr would go by what a module makes of it: recurrent ones and parametrized ones have a way of their own.
    """
    return module._parameters, module._buffers


def has_step_hooks(optimizer: "torch.optim.Optimizer") -> bool:
    """Whether somebody has registered a hook around the step of an optimizer, which has to be called as usual then."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def count_step(optimizer: "torch.optim.Optimizer") -> None:
    """Tell a schedule that its optimizer was called, where its step is called past the wrapper that would tell it."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


# --- W&B ------------------------------------------------------------------------------------------------------------


def wandb_settings(trainer: int) -> dict[str, Any]:
    """Settings of W&B that begin with x_, which it may change or drop in any release.

    Those that it does not know are to be left out: then system metrics are those of W&B's own process, and a kill takes
    up to 15 s of rows, which the next start shows again.

    Args:
        trainer: Process id of the process that trains.
    """
    return {"x_stats_pid": trainer, "x_transaction_log_flush_interval": 2.0}


def on_wandb_core(started: Callable[[subprocess.Popen[Any]], None]) -> None:
    """Be told of each wandb-core that W&B starts from now on, by a `subprocess.Popen` in place of Python's own.

    W&B does not tell the process id of its service. Without it nobody could kill one that hangs at a server, nor make
    it nice before it takes a core that trains.

    Args:
        started: Called with the process.
    """

    class Popen(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if "wandb-core" in str(self.args):
                started(self)

    subprocess.Popen = Popen  # type: ignore[misc]
