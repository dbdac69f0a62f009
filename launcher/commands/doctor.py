"""What is wrong with this allocation, in seconds and in words: ranks, devices, all-reduce, directory, clocks.

    srun --ntasks-per-node=8 python -m launcher doctor outputs     # started as training is: srun, torchrun, accelerate
    launcher doctor                                      # one process, this machine

Exit status 0 where all is well, 1 where something is wrong. Nothing takes longer than --timeout seconds.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.commands.allocation import (
    MEGABYTES,
    all_reduce,
    check_directory,
    clock_skews,
    find_problems,
    host_name,
    look_here,
    some_of,
)
from launcher.distributed import slurm
from launcher.distributed.ranks import Ranks, join
from launcher.distributed.rendezvous import agent_serves_store, own_part

SKEW = 1.0  # seconds between two clocks that confuse make, logs and caches
SLOW = 0.2  # GB/s between nodes below which the wrong network is likely


def command(argv: Sequence[str]) -> int:
    """Check everything, and let rank 0 say what was found."""
    parser = argparse.ArgumentParser(description="Check the ranks, devices, network, directory and clocks of a launch.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path("outputs"), help="where runs write")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until what is silent counts as missing")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    asked = parser.parse_args(argv)
    ranks = join()
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
    if ranks.world_size > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
    if ranks.rank != 0:
        return 0  # rank 0 says it, and its status counts
    return _report(every, reduced, directory, asked.directory.absolute(), skews, find_problems(every))


@contextlib.contextmanager
def _bounded(ranks: Ranks, what: str, hint: str, seconds: float) -> Iterator[None]:
    """End the process, with words, where something takes too long: a hanging collective cannot be interrupted."""

    def end() -> None:
        who = f"rank {ranks.rank} on {host_name()}"
        os.write(2, f"PROBLEM     {who}: {what} did not end within {seconds:g} s. {hint}\n".encode())
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- All ranks ------------------------------------------------------------------------------------------------------


def _meet(ranks: Ranks, timeout: float) -> Any:
    """The store of the rendezvous; where it cannot be reached, the process ends."""
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = ranks.rank == 0 and not agent_serves_store()
    try:
        wait = timedelta(seconds=timeout)
        store = dist.TCPStore(address, port, ranks.world_size, serves, wait, wait_for_workers=False)
    except Exception as error:
        if serves:
            trouble = (
                f"rank 0 cannot listen on port {port} of {host_name()}: another process has it? "
                "MASTER_PORT=... chooses one"
            )
        else:
            trouble = (
                f"rank {ranks.rank} on {host_name()} does not reach rank 0 at {address}:{port} within {timeout:g} s: "
                "it is not there, or its address leads nowhere from this node (MASTER_ADDR), or a firewall is between "
                "them"
            )
        if ranks.local_rank == 0:  # once for each node
            os.write(2, f"PROBLEM     {trouble}.\n            ({str(error).splitlines()[0][:200]})\n".encode())
        os._exit(1)
    return own_part("doctor", store)


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
        f"PROBLEM     {count} did not come within {timeout:g} s: {some_of(missing)}{where}. They "
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
    counts = sorted({len(fact["cores"]) for fact in facts})
    lines = [
        ("ranks", f"{len(facts)} on {len(hosts)} node{'s' if len(hosts) > 1 else ''} ({few})"),
        ("devices", ", ".join(f"{count} x {name}" for name, count in devices.items())
         + f"; {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} CPU cores for each rank to run on"),
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
