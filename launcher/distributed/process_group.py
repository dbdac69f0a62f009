"""The devices and the process group of a run, brought up with the settings that they are to have."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.config import accelerate_flags
from launcher.core.errors import ConfigError
from launcher.distributed.devices import gpu_of, keep_to_share
from launcher.distributed.numerics import choose_numerics
from launcher.distributed.ranks import ALONE, OF_MPI, Ranks
from launcher.distributed.rendezvous import agent_serves_store, own_part, wait_for_rank_0
from launcher.distributed.threads import choose_threads

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

# Seconds by which the process group waits longer than `timeout`: by then the watchdog has ended a run that hangs, with
# names and places, and a checkpoint that was being written is on the disk. Its own timeout only raises or aborts.
LONGER = 3600.0
# NCCL's threads end the process on an error, on a timeout and where they are stuck themselves, whatever it is writing
# (ProcessGroupNCCL.hpp: ErrorHandlingMode, of which 0 leaves it be). The watchdog does it, once a checkpoint is whole.
ABORTS = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS", "TORCH_NCCL_ENABLE_MONITORING")


def start(
    ranks: Ranks, settings: Mapping[str, Any], on_cpu: bool, useful: Callable[[], int | None] = lambda: None
) -> "Accelerator":
    """Bring up the devices and the process group.

    Args:
        ranks: Of this launch.
        settings: Of which `device`, `mixed_precision`, `threads`, `timeout`, `deterministic`, `strategy` and
            `float32_matmul_precision` count.
        on_cpu: What choose_device chose.
        useful: As for choose_threads.

    Raises:
        ConfigError: The ranks did not find each other as one group.
    """
    import torch
    from accelerate import Accelerator

    # Accelerate reads these again and would follow a saved config against ours.
    os.environ["ACCELERATE_USE_CPU"] = str(on_cpu).lower()
    os.environ["ACCELERATE_MIXED_PRECISION"] = settings["mixed_precision"]
    accelerate_flags.leave_nothing()
    count = choose_threads(settings["threads"], ranks, useful)
    os.environ["OMP_NUM_THREADS"] = str(count)
    for name in ABORTS:
        os.environ.setdefault(name, "0")
    # Before the group is made: that of NCCL then does without NVLS, which adds up in an order that changes (the
    # constructor in ProcessGroupNCCL.cpp).
    choose_numerics(settings["deterministic"], settings["float32_matmul_precision"])
    if ranks.world_size == 1:  # without LOCAL_RANK Accelerate makes no group, which nobody would leave
        for name in (*ALONE, *OF_MPI):  # RANK=0 and WORLD_SIZE=1 may stay: a second look finds the same
            if name not in ("RANK", "WORLD_SIZE") or not os.environ.get(name):
                os.environ.pop(name, None)
    else:
        os.environ |= {"LOCAL_RANK": str(ranks.local_rank), "LOCAL_WORLD_SIZE": str(ranks.local_world_size)}
        device = None if on_cpu else torch.device("cuda", gpu_of(ranks, torch.cuda.device_count()))
        if device is not None:  # Accelerate will choose the same
            torch.cuda.set_device(device)
        # NCCL refuses several processes on one GPU, gloo takes them.
        join_group(ranks, "gloo" if on_cpu or settings["device"] == "shared" else "nccl", device, settings["timeout"])
    options = _ddp_options(settings["strategy"])
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=settings["mixed_precision"], kwargs_handlers=[options])
    if accelerator.num_processes != ranks.world_size:
        raise ConfigError(
            f"{ranks.world_size} processes were started, but each believes it is one of {accelerator.num_processes}. "
            "Start with torchrun --nproc_per_node, or on a machine without GPUs with ACCELERATE_USE_CPU=1."
        )
    if on_cpu:  # Accelerate says cpu:0 in a group, which Tensor.to takes for another device than cpu: it would copy
        accelerator.state.device = torch.device("cpu")
    take_own_index(accelerator)
    keep_to_share(accelerator.device)
    # After Accelerator(), which sets a number of its own; weights differ in bits between 1 and 2 threads.
    torch.set_num_threads(count)
    return accelerator


def _ddp_options(strategy: Mapping[str, Any]) -> Any:
    """What Accelerate is to give DDP; of another strategy, launcher/training/sharded.py reads the options."""
    from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

    options = {name: value for name, value in strategy.items() if name not in ("name", "compress")}
    hook = DDPCommunicationHookType(strategy.get("compress") or "no")
    return DistributedDataParallelKwargs(comm_hook=hook, **({} if strategy.get("name") == "fsdp" else options))


def take_own_index(accelerator: "Accelerator") -> None:
    """Let DDP have the GPU that the rank is on: Accelerate gives it the local rank (`Accelerator.prepare_model`).

    Where each rank is shown one GPU, that number leads nowhere.
    """
    if accelerator.device.index is not None:
        accelerator.state.local_process_index = accelerator.device.index


def join_group(ranks: Ranks, backend: str, device: "torch.device | None", timeout: float) -> None:
    """Make the ranks a process group, which Accelerate then takes up: its own call (1.15) passes no device on.

    They have `timeout` seconds to meet. NCCL, told its device, connects at once, and fails here where it cannot, in
    place of in some first collective; and a barrier is not left to guess a device.
    """
    import torch.distributed as dist

    from launcher.core.compat import set_group_timeout

    wait_for_rank_0(ranks)
    if not dist.is_initialized():  # by a module of a person's own
        wait, store = timedelta(seconds=timeout), None
        if agent_serves_store():
            # torchrun's store outlives a restart, and gloo would find the addresses of dead ranks in it (torch 2.14.1
            # with --max-restarts fails so, also in ten lines of plain PyTorch): each start gets a part of its own.
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = own_part("start", dist.TCPStore(*address, ranks.world_size, is_master=False, timeout=wait))
        alone = device if backend == "nccl" else None
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=wait, device_id=alone
        )
    set_group_timeout(timedelta(seconds=timeout + LONGER))  # now that they have met
