"""How many CPU threads a process takes: as many as were asked for, are there, and help."""

import os
from collections.abc import Callable
from pathlib import Path

from launcher.config import accelerate_flags
from launcher.core.processes import cores
from launcher.distributed import slurm
from launcher.distributed.ranks import Ranks, is_launcher


def choose_threads(threads: int | str, ranks: Ranks, useful: Callable[[], int | None] = lambda: None) -> int:
    """CPU threads of this process: a number, or what `auto` means here.

    That is OMP_NUM_THREADS where a person has set it, else this process's share of the cores of the machine or the
    SLURM task, as far as they are of use: `useful` tells how many help, where that is known and matters.
    """
    if threads != "auto":
        return int(threads)
    if (exported := exported_threads()) is not None:
        return exported
    share = share_of_cores(ranks.local_world_size)
    return min(share, useful() or share) if share > 1 else share


def share_of_cores(processes: int | None = None) -> int:
    """A process's share of the cores of the machine or of the SLURM task, at least 1.

    Without `processes`, the environment says how many of the run are on this machine.
    """
    processes = processes or int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    there = len(cores())
    given = slurm.cores_of_task(os.environ, processes)  # and may bind it to them
    return max(1, there // processes if given is None else min(given, there))


def takes_all_cores() -> bool:
    """Whether the processes of this run on this machine train with all cores that they may use."""
    import torch

    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return not on_gpu and torch.get_num_threads() >= share_of_cores()


def exported_threads() -> int | None:
    """OMP_NUM_THREADS, unless it was a launcher that set it: torchrun and `accelerate launch` do where nobody has."""
    if is_launcher(command := accelerate_flags.parent_command()):
        if flag := accelerate_flags.asked_number(command, "num_cpu_threads_per_process"):
            return flag
        try:
            before = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")  # as it was started with
        except OSError:
            return None
        if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in before):
            return None
    number = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested regions
    return int(number) if number.isdigit() and int(number) else None
