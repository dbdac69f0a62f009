"""What is wrong with this allocation, in seconds and in words: ranks, devices, all-reduce, directory, clocks.

    srun --ntasks-per-node=8 python -m launcher doctor outputs     # started as training is: srun, torchrun, accelerate
    launcher doctor                                      # one process, this machine

Exit status 0 where all is well, 1 where something is wrong. Nothing takes longer than --timeout seconds.
"""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.distributed import process_group, slurm
from launcher.distributed.gpus import identity, index_of_rank
from launcher.distributed.process_group import Ranks
from launcher.distributed.watch import guarded
from launcher.run.run_directory import is_locked

MEGABYTES = 16  # of the large all-reduce and of the file
SKEW = 1.0  # seconds between two clocks that confuse make, logs and caches
SLOW = 0.2  # GB/s between nodes below which the wrong network is likely
VISIBLE = 5.0  # seconds until a file of another node must be seen; NFS keeps what it knows for 3


def main() -> None:
    """The console command."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: Sequence[str]) -> int:
    """Check everything, and let rank 0 say what was found.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(description="Check the ranks, devices, network, directory and clocks of a launch.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path("outputs"), help="where runs write")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until what is silent counts as missing")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    asked = parser.parse_args(argv)
    ranks = process_group.join()
    with _bounded(ranks, "importing torch", "Is the file system with the Python environment slow?", asked.timeout):
        facts = look_here(ranks, asked.device)
    every, reduced = [facts], None
    if ranks.world_size > 1:
        store = _meet(ranks, asked.timeout)
        every = _call_the_roll(store, ranks, facts, asked.timeout)
        if not every:
            return 1
        # NCCL would hang or crash on what is wrong with the devices.
        on_cpu = any(fact["gpu"] is None for fact in every) or bool(find_problems(every))
        hint = (
            "The ranks have met, but their collectives do not get through: the interface is a wrong one "
            "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), or a firewall is between the nodes. NCCL_DEBUG=INFO tells more."
        )
        with _bounded(ranks, "the all-reduce", hint, asked.timeout):
            reduced = all_reduce(store, ranks, on_cpu, asked.timeout)
    hint = "The file system hangs: can every node reach it?"
    with _bounded(ranks, f"writing in {asked.directory}", hint, asked.timeout):
        directory = check_directory(asked.directory.absolute(), ranks)
    skews = clock_skews(ranks)
    _leave(ranks)
    if ranks.rank != 0:
        return 0  # rank 0 says it, and its status counts
    return _report(every, reduced, directory, asked.directory.absolute(), skews, find_problems(every))


@contextlib.contextmanager
def _bounded(ranks: Ranks, what: str, hint: str, seconds: float) -> Iterator[None]:
    """End the process, with words, where something takes too long: a hanging collective cannot be interrupted."""

    def end() -> None:
        who = f"rank {ranks.rank} on {_host()}"
        os.write(2, f"PROBLEM     {who}: {what} did not end within {seconds:g} s. {hint}\n".encode())
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


# --- One rank -------------------------------------------------------------------------------------------------------


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
        if (index := index_of_rank(gpus, ranks.local_rank, ranks.local_world_size)) is not None:
            gpu = {"name": torch.cuda.get_device_properties(index).name, "id": identity(index)}
            torch.ones(8, device=f"cuda:{index}").sum().item()  # it works
    given = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("SLURM_JOB_GPUS", ""))
    return {
        "rank": ranks.rank,
        "host": _host(),
        "local_world_size": ranks.local_world_size,
        "gpu": gpu,
        "gpus": gpus,
        "given_gpus": sum(name not in ("", "-1", "NoDevFiles") for name in given.split(",") if device != "cpu"),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "import_seconds": seconds,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def find_problems(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the ranks as they are, in words.

    Args:
        facts: What `look_here` found on each rank.
    """
    problems = []
    for name in facts[0]["versions"]:
        found: dict[str, list[int]] = {}
        for fact in facts:
            found.setdefault(fact["versions"][name], []).append(fact["rank"])
        if len(found) > 1:
            words = "; ".join(f"{version} on ranks {_few(those)}" for version, those in found.items())
            problems.append(f"{name} differs: {words}. Give every node the same environment.")
    owners: dict[tuple[str, str], list[int]] = {}
    for fact in facts:
        if fact["gpu"]:
            owners.setdefault((fact["host"], fact["gpu"]["id"]), []).append(fact["rank"])
    for (host, _), those in owners.items():
        if len(those) > 1:
            problems.append(f"ranks {_few(those)} share a GPU of {host}: start one process per GPU.")
    for host, fact in {fact["host"]: fact for fact in facts}.items():
        if fact["given_gpus"] and not fact["gpus"]:
            problems.append(
                f"{host}: {fact['given_gpus']} GPUs were given, and torch sees none: no driver, or no torch with CUDA."
            )
        elif fact["gpus"] and not fact["gpu"]:
            problems.append(f"{host}: {fact['local_world_size']} ranks and {fact['gpus']} GPUs: start one per GPU.")
    bound = Counter((fact["host"], tuple(fact["cores"])) for fact in facts if len(fact["cores"]) == 1)
    for (host, cores), count in bound.items():
        if count > 1:
            problems.append(
                f"{host}: {count} ranks are bound to core {cores[0]} alone: --cpus-per-task gives each its own."
            )
    return problems


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


# --- All of them ----------------------------------------------------------------------------------------------------


def _meet(ranks: Ranks, timeout: float) -> Any:
    """The store of the rendezvous.

    Raises:
        SystemExit: It cannot be reached.
    """
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = ranks.rank == 0 and not process_group.agent_serves_store()
    try:
        wait = timedelta(seconds=timeout)
        store = dist.TCPStore(address, port, ranks.world_size, serves, wait, wait_for_workers=False)
    except Exception as error:
        if serves:
            trouble = (
                f"rank 0 cannot listen on port {port} of {_host()}: another process has it? MASTER_PORT=... chooses one"
            )
        else:
            trouble = (
                f"rank {ranks.rank} on {_host()} does not reach rank 0 at {address}:{port} within {timeout:g} s: it is "
                "not there, or its address leads nowhere from this node (MASTER_ADDR), or a firewall is between them"
            )
        if ranks.local_rank == 0:  # once for each node
            os.write(2, f"PROBLEM     {trouble}.\n            ({str(error).splitlines()[0][:200]})\n".encode())
        os._exit(1)
    return process_group.own_part("doctor", store)


def _call_the_roll(store: Any, ranks: Ranks, facts: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
    """What every rank found; empty where not all came, which rank 0 says."""
    store.set(f"rank/{ranks.rank}", json.dumps(facts))
    if ranks.rank != 0:
        with _bounded(ranks, "waiting for rank 0", "It ended, or it hangs.", 2 * timeout + 5):
            store.wait(["roll"], timedelta(seconds=2 * timeout + 10))
        every: list[dict[str, Any]] = json.loads(store.get("roll"))
        return every
    end = time.monotonic() + timeout
    missing = list(range(ranks.world_size))
    while missing and time.monotonic() < end:
        missing = [rank for rank in missing if not store.check([f"rank/{rank}"])]
        time.sleep(0.05)
    there = [json.loads(store.get(f"rank/{rank}")) for rank in range(ranks.world_size) if rank not in missing]
    store.set("roll", json.dumps([] if missing else there))
    if not missing:
        return there
    where = _short_of(Counter(fact["host"] for fact in there), os.environ)
    count = f"{len(missing)} of {ranks.world_size} ranks"
    print(
        f"PROBLEM     {count} did not come within {timeout:g} s: {_few(missing)}{where}. They "
        "were not started, ended early (look at their output), or do not reach this address "
        f"({os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}).",
        file=sys.stderr,
    )
    time.sleep(1)  # the store goes with this process: let the others read
    return []


def _short_of(there: Mapping[str, int], environment: Mapping[str, str]) -> str:
    """On which nodes SLURM started more tasks than came."""
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_STEP_TASKS_PER_NODE" not in environment:
        return ""
    hosts = slurm.expand_hosts(environment["SLURM_STEP_NODELIST"])
    counts = slurm.expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    short = [f"{h} ({n - there.get(h, 0)})" for h, n in zip(hosts, counts, strict=True) if there.get(h, 0) < n]
    return f", on {', '.join(short[:8])}" if short else ""


def all_reduce(store: Any, ranks: Ranks, on_cpu: bool, timeout: float) -> dict[str, Any]:
    """Time an all-reduce over all ranks.

    Returns:
        `milliseconds` for one number (median of 20), `large_seconds` for MEGABYTES (least of 3), `backend`, `wrong`.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cpu" if on_cpu else f"cuda:{process_group.gpu_of(ranks, torch.cuda.device_count())}")
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
    """Whether every rank can write in a directory, sees what the others write, and is kept out by their locks.

    Returns:
        On rank 0 `problems`, `seconds` that MEGABYTES take to be written safely, and `free` bytes.
    """
    import uuid

    made = [place for place in (directory, *directory.parents) if not place.exists()]  # before others make them
    name = process_group.from_rank_0(f".doctor-{uuid.uuid4().hex[:8]}", ranks.world_size)
    own = f"{name}-{ranks.rank}"
    result: dict[str, Any] = {"host": _host(), "rank": ranks.rank, "trouble": None, "unseen": [], "locked": True}
    lock = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with open(directory / own, "wb") as file:
            file.write(bytes(MEGABYTES << 20) if ranks.rank == 0 else b"1")
            file.flush()
            os.fsync(file.fileno())
        result["seconds"] = time.monotonic() - started
        usage = os.statvfs(directory)
        result["free"] = usage.f_bavail * usage.f_frsize
        if ranks.rank == 0:
            lock = os.open(directory / own, os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        result["trouble"] = error.strerror or str(error)
    wrote = _gather(result["trouble"] is None, ranks)
    if result["trouble"] is None:
        others = {f"{name}-{rank}" for rank in ([0] if ranks.rank else range(ranks.world_size)) if wrote[rank]}
        end = time.monotonic() + VISIBLE
        while (unseen := others - set(os.listdir(directory))) and time.monotonic() < end:
            time.sleep(0.1)
        result["unseen"] = sorted(int(one.rpartition("-")[2]) for one in unseen)
        if ranks.rank and wrote[0] and not unseen:
            result["locked"] = is_locked(directory / f"{name}-0")
    every = _gather(result, ranks)
    if lock is not None:
        os.close(lock)
    with contextlib.suppress(OSError):
        (directory / own).unlink()
    _gather(None, ranks)
    for place in made if ranks.rank == 0 else ():
        with contextlib.suppress(OSError):
            place.rmdir()
    return {
        "problems": directory_problems(directory, every),
        "seconds": result.get("seconds"),
        "free": result.get("free"),
    }


def directory_problems(directory: Path, every: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a directory, one line for each kind and node."""
    problems = {}
    for result in every:
        host = result["host"]
        if result["trouble"] is not None:
            problems[host, "write"] = f"{host} cannot write in {directory}: {result['trouble']}."
        if result["rank"] and result["unseen"]:
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
        _gather(None, ranks)
        rounds.append(_gather((_host(), time.time()), ranks))
    return least_skews(rounds)


def least_skews(rounds: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """The skew of each host against the first, from several rounds of looks at the clocks that belong together."""
    found: dict[str, float] = {}
    for looks in rounds:
        for host, clock in looks:
            skew = clock - looks[0][1]
            if host not in found or abs(skew) < abs(found[host]):
                found[host] = skew
    return list(found.items())


def _gather(thing: Any, ranks: Ranks) -> list[Any]:
    if ranks.world_size == 1:
        return [thing]
    import torch.distributed as dist

    things: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(things, thing)
    return things


def _leave(ranks: Ranks) -> None:
    if ranks.world_size > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


# --- Words ----------------------------------------------------------------------------------------------------------


def _report(
    facts: Sequence[Mapping[str, Any]],
    reduced: Mapping[str, Any] | None,
    directory: Mapping[str, Any],
    path: Path,
    skews: Sequence[tuple[str, float]],
    problems: list[str],
) -> int:
    hosts = Counter(fact["host"] for fact in facts)
    few = ", ".join(f"{host}: {count}" for host, count in list(hosts.items())[:8]) + (", ..." if len(hosts) > 8 else "")
    devices = Counter(fact["gpu"]["name"] if fact["gpu"] else "CPU" for fact in facts)
    cores = sorted({len(fact["cores"]) for fact in facts})
    lines = [
        ("ranks", f"{len(facts)} on {len(hosts)} node{'s' if len(hosts) > 1 else ''} ({few})"),
        ("devices", ", ".join(f"{count} x {name}" for name, count in devices.items())
         + f"; {' to '.join(map(str, dict.fromkeys((cores[0], cores[-1]))))} CPU cores for each rank to run on"),
        ("software", ", ".join(f"{name} {version}" for name, version in facts[0]["versions"].items())
         + f"; importing torch took {max(fact['import_seconds'] for fact in facts):.1f} s at most"),
    ]  # fmt: skip
    if reduced is not None:
        rate = 2 * (len(facts) - 1) / len(facts) * MEGABYTES / 1024 / reduced["large_seconds"]
        text = (
            f"{reduced['milliseconds']:.2f} ms for a number, {MEGABYTES} MB in {1000 * reduced['large_seconds']:.1f} ms"
        )
        lines.append(("all-reduce", f"{text} ({rate:.2f} GB/s per rank, {reduced['backend']})"))
        if reduced["wrong"]:
            problems.append("the all-reduce gave a wrong sum: a broken network card, driver or library.")
        if rate < SLOW and len(hosts) > 1:
            lines.append(
                ("", "That is slow: does it take the management network? (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)")
            )
    problems += directory["problems"]
    if directory["free"] is not None:
        text = f"{MEGABYTES} MB in {directory['seconds']:.2f} s, {directory['free'] / 2**30:.0f} GB free"
        lines.append(("directory", f"{path}: {text}"))
        if directory["free"] < 2**30:
            problems.append(f"{path} has only {directory['free'] / 2**20:.0f} MB free.")
    worst = max(skews, key=lambda one: abs(one[1]))
    lines.append(("clocks", f"within {1000 * abs(worst[1]):.0f} ms of rank 0's"))
    if abs(worst[1]) > SKEW:
        problems.append(f"the clock of {worst[0]} is {worst[1]:+.1f} s from that of rank 0: is NTP running there?")
    if len(facts) == 1 and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        lines.append(("", f"SLURM has room for {os.environ['SLURM_NTASKS']} tasks here; this looked at one: use srun"))
    for name, text in lines:
        print(f"{name:<11} {text}")
    for problem in problems:
        print(f"PROBLEM     {problem}")
    if not problems:
        print("fine")
    sys.stdout.flush()
    return 1 if problems else 0
