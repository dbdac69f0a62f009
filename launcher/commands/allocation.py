"""What the ranks of a launch see of their devices, directory and clocks, and what is wrong with that in words."""

import contextlib
import os
import platform
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.core.locks import is_locked, take_lock
from launcher.core.processes import cores
from launcher.distributed.collectives import at_every_rank, from_rank_0
from launcher.distributed.devices import gpu_of, has_own_gpu, identity
from launcher.distributed.ranks import Ranks

MEGABYTES = 16  # of the large all-reduce and of the file
VISIBLE = 5.0  # seconds until a file of another node must be seen; NFS keeps what it knows for 3


def host_name() -> str:
    """How the cluster, or else the network, calls this machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def look_here(ranks: Ranks, device: str) -> dict[str, Any]:
    """What this rank sees of itself and its machine."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    started = time.monotonic()
    import torch

    seconds = time.monotonic() - started
    gpu, gpus = None, 0
    if device != "cpu" and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if has_own_gpu(ranks, gpus):
            index = gpu_of(ranks, gpus)
            gpu = {"name": torch.cuda.get_device_properties(index).name, "id": identity(index)}
            torch.ones(8, device=f"cuda:{index}").sum().item()  # it works
    given = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("SLURM_JOB_GPUS", ""))
    return {
        "rank": ranks.rank,
        "host": host_name(),
        "local_world_size": ranks.local_world_size,
        "gpu": gpu,
        "gpus": gpus,
        "given_gpus": sum(name not in ("", "-1", "NoDevFiles") for name in given.split(",") if device != "cpu"),
        "cores": cores(),
        "import_seconds": seconds,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def find_problems(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the ranks, in words, by what `look_here` found on each."""
    problems = []
    for name in facts[0]["versions"]:
        found: dict[str, list[int]] = {}
        for fact in facts:
            found.setdefault(fact["versions"][name], []).append(fact["rank"])
        if len(found) > 1:
            words = "; ".join(f"{version} on ranks {some_of(those)}" for version, those in found.items())
            problems.append(f"{name} differs: {words}. Give every node the same environment.")
    owners: dict[tuple[str, str], list[int]] = {}
    for fact in facts:
        if fact["gpu"]:
            owners.setdefault((fact["host"], fact["gpu"]["id"]), []).append(fact["rank"])
    for (host, _), those in owners.items():
        if len(those) > 1:
            problems.append(f"ranks {some_of(those)} share a GPU of {host}: start one process per GPU.")
    for host, fact in {fact["host"]: fact for fact in facts}.items():
        if fact["given_gpus"] and not fact["gpus"]:
            problems.append(
                f"{host}: {fact['given_gpus']} GPUs were given, and torch sees none: no driver, or no torch with CUDA."
            )
        elif fact["gpus"] and not fact["gpu"]:
            problems.append(f"{host}: {fact['local_world_size']} ranks and {fact['gpus']} GPUs: start one per GPU.")
    bound = Counter((fact["host"], tuple(fact["cores"])) for fact in facts if len(fact["cores"]) == 1)
    for (host, own), count in bound.items():
        if count > 1:
            problems.append(
                f"{host}: {count} ranks are bound to core {own[0]} alone: --cpus-per-task gives each its own."
            )
    return problems


def some_of(numbers: Sequence[int]) -> str:
    """The first numbers, and how many more there are."""
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def all_reduce(store: Any, ranks: Ranks, on_cpu: bool, timeout: float) -> dict[str, Any]:
    """Time an all-reduce over all ranks.

    Returns:
        `milliseconds` for one number (median of 20), `large_seconds` for MEGABYTES (least of 3), `backend`, `wrong`.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cpu" if on_cpu else f"cuda:{gpu_of(ranks, torch.cuda.device_count())}")
    backend = "gloo" if on_cpu else "nccl"
    if not on_cpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=timedelta(seconds=timeout),
        device_id=None if on_cpu else device,
    )  # fmt: skip

    def timed(tensor: torch.Tensor) -> float:
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        tensor[0].item()
        return time.perf_counter() - started

    number = torch.tensor([float(ranks.rank + 1)], device=device)
    timed(number)
    wrong = number.item() != ranks.world_size * (ranks.world_size + 1) / 2
    small = sorted(timed(torch.ones(1, device=device)) for _ in range(20))[10]
    large = min(timed(torch.ones(MEGABYTES << 18, device=device)) for _ in range(3))
    return {"milliseconds": 1000 * small, "large_seconds": large, "backend": backend, "wrong": wrong}


def check_directory(directory: Path, ranks: Ranks) -> dict[str, Any]:
    """Whether every rank can write in a directory, sees what rank 0 writes there, and is kept out by its lock.

    Returns:
        On rank 0 `problems`, `seconds` that MEGABYTES take to be written safely, and `free` bytes.
    """
    made = [place for place in (directory, *directory.parents) if not place.exists()]  # before others make them
    name = from_rank_0(f".doctor-{uuid.uuid4().hex[:8]}", ranks.world_size)
    own, first = directory / f"{name}-{ranks.rank}", directory / f"{name}-0"
    found: dict[str, Any] = {"host": host_name(), "rank": ranks.rank, "trouble": None, "seen": True, "locked": True}
    found |= {"seconds": None, "free": None}
    held = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with own.open("wb") as file:
            file.write(bytes(MEGABYTES << 20) if ranks.rank == 0 else b"1")
            file.flush()
            os.fsync(file.fileno())
        found |= {"seconds": time.monotonic() - started, "free": shutil.disk_usage(directory).free}
        if ranks.rank == 0:
            held = take_lock(own, {})
    except OSError as error:
        found["trouble"] = error.strerror or str(error)
    is_there = from_rank_0(found["trouble"] is None, ranks.world_size)
    if ranks.rank and is_there and found["trouble"] is None:
        end = time.monotonic() + VISIBLE
        while not (seen := first.name in os.listdir(directory)) and time.monotonic() < end:
            time.sleep(0.1)
        found |= {"seen": seen, "locked": not seen or is_locked(first)}
    every = at_every_rank(found, ranks.world_size)
    if held is not None:
        os.close(held)
    with contextlib.suppress(OSError):
        own.unlink()
    at_every_rank(None, ranks.world_size)
    for place in made if ranks.rank == 0 else ():
        with contextlib.suppress(OSError):
            place.rmdir()
    return found | {"problems": directory_problems(directory, every)}


def directory_problems(directory: Path, every: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a directory, one line for each kind and node."""
    problems = {}
    for result in every:
        host = result["host"]
        if result["trouble"] is not None:
            problems[host, "write"] = f"{host} cannot write in {directory}: {result['trouble']}."
        if not result["seen"]:
            problems[host, "see"] = (
                f"{host} does not see what rank 0 on {every[0]['host']} writes in {directory}: it is not the same file "
                "system. Use a shared one."
            )
        if not result["locked"]:
            problems[host, "lock"] = (
                f"{host} is not kept out by a lock (flock) of {every[0]['host']} in {directory}: the file system must "
                "be mounted with locks, or two starts of one run will not notice each other."
            )
    return list(problems.values())


def clock_skews(ranks: Ranks) -> list[tuple[str, float]]:
    """How far the clock of each node is from that of rank 0, in seconds: the least of five looks after a barrier."""
    rounds = []
    for _ in range(5):
        at_every_rank(None, ranks.world_size)
        rounds.append(at_every_rank((host_name(), time.time()), ranks.world_size))
    return least_skews(rounds)


def least_skews(rounds: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """The skew of each host against the first, from several rounds of looks at the clocks that belong together."""
    found: dict[str, list[float]] = {}
    for looks in rounds:
        for host, clock in looks:
            found.setdefault(host, []).append(clock - looks[0][1])
    return [(host, min(skews, key=abs)) for host, skews in found.items()]
