"""Which device each rank of a run computes on."""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.config import accelerate_flags
from launcher.config.messages import FP16_ON_CPU
from launcher.core.errors import ConfigError
from launcher.distributed.numerics import choose_workspace
from launcher.distributed.ranks import Ranks
from launcher.distributed.rendezvous import judged_by_rank_0

# In the environment of a trial that shares its GPU with others: its part of the memory, above 0 and below 1.
MEMORY_SHARE = "LAUNCHER_MEMORY_SHARE"
CONTEXT = 768 * 2**20  # bytes of a GPU that a process takes beside what it allocates: CUDA's context and its libraries


def keep_to_share(device: Any) -> None:
    """Let this process allocate no more of a GPU's memory than its share, where it has been given one.

    Args:
        device: A torch.device.
    """
    share = os.environ.get(MEMORY_SHARE)
    if share is None or device.type != "cuda":
        return
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.02, float(share) - CONTEXT / total), device)


def choose_device(settings: Mapping[str, Any], ranks: Ranks) -> bool:
    """Decide between GPUs and the CPU, and in which workspace, without starting a device.

    Args:
        settings: Of which `device`, `mixed_precision` and `deterministic` count.
        ranks: Of this launch.

    Returns:
        True for the CPU.

    Raises:
        ConfigError: More processes than GPUs, no GPU that they could share, fp16 on a CPU, or as choose_workspace does.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # count GPUs without a CUDA context
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a peer that ends is told by us, in a line
    import torch

    on_cpu = settings["device"] == "cpu" or accelerate_flags.asks_for_cpu(os.environ) or not torch.cuda.is_available()
    if on_cpu and settings["mixed_precision"] == "fp16":
        raise ConfigError(FP16_ON_CPU)
    check_share(settings["device"], ranks, 0 if on_cpu else torch.cuda.device_count())
    choose_workspace(os.environ, settings["deterministic"], on_cpu)
    return on_cpu


def check_share(device: str, ranks: Ranks, count: int) -> None:
    """Refuse too few GPUs for processes that are to have one each, and none (`count`=0: the CPU) where they share."""
    if device == "shared" and not count:
        raise ConfigError(
            "device=shared: torch sees no GPU here that processes could share, or the CPU was asked for "
            "(ACCELERATE_USE_CPU). Use device=auto, or device=cpu."
        )
    if device != "shared" and count and not has_own_gpu(ranks, count):
        raise ConfigError(
            f"{ranks.local_world_size} processes on this machine, which has {count} GPUs: start one process per GPU, "
            "use device=cpu, or, to try several processes on a GPU, device=shared."
        )


def has_own_gpu(ranks: Ranks, count: int) -> bool:
    """Whether each process of this machine has a GPU of its own, as far as one that sees `count` can tell.

    Where the launcher shows each process one, as SLURM does for --gpus-per-task=1 and --gpu-bind=single:1, that is 1.
    """
    return count == 1 or count >= ranks.local_world_size


def gpu_of(ranks: Ranks, count: int) -> int:
    """The number of the GPU that a process takes of `count`: its own, or with device=shared the next in turn.

    Accelerate counts the same way (`PartialState.set_device`).
    """
    return ranks.local_rank % count


def compare_devices(device: str, ranks: Ranks, on_cpu: bool, timeout: float) -> None:
    """Check that all ranks are on devices of one kind, and each on its own, before they meet in a collective.

    A rank that sees one GPU where its machine has several ranks cannot tell whether that is also the others': NCCL
    would hang or fail on one that two ranks share. Every rank is waited for `timeout` seconds.

    Raises:
        ConfigError: They are not, on every rank.
    """
    import torch

    fact: dict[str, str | None] = {"host": socket.gethostname(), "kind": "cpu" if on_cpu else "gpu", "gpu": None}
    if not on_cpu and device != "shared" and torch.cuda.device_count() < ranks.local_world_size:
        fact["gpu"] = identity(0)
    judged_by_rank_0(fact, check_devices, ranks, timeout)


def check_devices(devices: Sequence[Mapping[str, str | None]]) -> None:
    """Refuse devices of two kinds, and a GPU that two ranks have.

    Args:
        devices: Of each rank: `host`, `kind` (cpu or gpu), and `gpu`, what tells its GPU from all others; None where
            it sees as many as there are ranks on its machine.
    """
    first = {str(device["kind"]): rank for rank, device in reversed([*enumerate(devices)])}
    if len(first) > 1:
        with_gpu, without = (f"rank {first[kind]} on {devices[first[kind]]['host']}" for kind in ("gpu", "cpu"))
        raise ConfigError(f"{with_gpu} has a GPU, and {without} has none: give every rank one, or use device=cpu.")
    owners: dict[str, int] = {}
    for rank, device in enumerate(devices):
        if (gpu := device["gpu"]) is None:
            continue
        if gpu in owners:
            raise ConfigError(
                f"ranks {owners[gpu]} and {rank} have the same GPU of {device['host']} ({gpu}): start one process per "
                "GPU, use device=cpu, or, to try several processes on a GPU, device=shared."
            )
        owners[gpu] = rank


def identity(index: int) -> str:
    """What tells a GPU that this process sees from all others: its UUID, or the name of a MIG slice.

    It starts CUDA, but makes no context.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if given.startswith("MIG-"):
        return given.split(",")[0]
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def check_compression(strategy: Mapping[str, Any], ranks: Ranks) -> None:
    """Refuse gradients in bf16 where torch is built without CUDA, as DDP does later and on any device.

    See `_check_comm_hook` in torch/nn/parallel/distributed.py. One process sums nothing up.
    """
    import torch

    if strategy.get("compress") == "bf16" and ranks.world_size > 1 and not (torch.version.cuda or torch.version.hip):
        raise ConfigError(
            f"strategy.compress=bf16: torch {torch.__version__} is built without CUDA, and its DDP refuses that. Use "
            "fp16 or null, or a torch with CUDA."
        )
