"""What grows with the number of ranks, beside training itself: python benchmarks/scale.py [--ranks 2,4,8,16,32].

Each rank is a process on this machine, in a real process group (gloo); they share its cores, which real nodes do not.
So look at how a figure grows from size to size, more than at the figure: 1.0 in a column `grows` is linear, 2.0
quadratic.
"""

import argparse
import math
import multiprocessing
import os
import random
import resource
import socket
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # heartbeats that look for a group which has just ended
WATCHED = 5.0  # seconds over which the heartbeats are measured

FIGURES = {
    "meet": "rendezvous and process group, ms",
    "directory": "run directory from rank 0 to all, ms",
    "number": "all-reduce of 8 bytes (the vote on stopping, if it did not ride on the gradient), ms",
    "states": "random states of all ranks to rank 0, for a checkpoint, ms",
    "state_kb": "the same, KB in the checkpoint",
    "watch_rank_0": "heartbeats: CPU of rank 0's process, % of a core",
    "watch_other": "heartbeats: CPU of another rank, % of a core",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rank_of_many(rank, world, port, start_at, results):
    import pickle

    import torch
    import torch.distributed as dist

    from launcher.distributed import process_group
    from launcher.distributed.process_group import Ranks
    from launcher.distributed.watch import Watch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}

    def timed(name, action, repeats=5):
        seconds = []
        for _ in range(repeats):
            dist.barrier()
            started = time.perf_counter()
            action()
            dist.barrier()
            seconds.append(time.perf_counter() - started)
        found[name] = 1000 * statistics.median(seconds)

    time.sleep(max(0, start_at - time.time()))
    started = time.perf_counter()
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    dist.barrier()
    found["meet"] = 1000 * (time.perf_counter() - started)
    state = {"python": random.getstate(), "numpy": ("MT19937", os.urandom(2500), 624, 0, 0.0)}
    found["state_kb"] = world * len(pickle.dumps(state)) / 1024
    timed("directory", lambda: process_group.from_rank_0("/a/run/directory", world))
    timed("number", lambda: dist.all_reduce(torch.zeros(2)))
    timed("states", lambda: process_group.at_rank_0(state, world, rank))
    watch = Watch(Ranks(rank, world, rank, world), 300)
    time.sleep(2)
    before = cpu_seconds()
    time.sleep(WATCHED)
    found["watch_rank_0" if rank == 0 else "watch_other"] = 100 * (cpu_seconds() - before) / WATCHED
    process_group.finish(watch)
    results.put(found)


def measure(world):
    import torch.distributed  # noqa: F401  in the parent, so that each child has it

    from launcher.distributed import process_group, watch  # noqa: F401

    context = multiprocessing.get_context("fork")
    results, port, start_at = context.Queue(), free_port(), time.time() + 0.5 + world / 20
    ranks = [context.Process(target=rank_of_many, args=(rank, world, port, start_at, results)) for rank in range(world)]
    for process in ranks:
        process.start()
    found = {}
    for _ in ranks:
        for name, value in results.get(timeout=300).items():
            found.setdefault(name, []).append(value)
    for process in ranks:
        process.join()
    return {name: max(values) for name, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="2,4,8,16,32", help="sizes to measure")
    sizes = [int(word) for word in parser.parse_args().ranks.split(",")]
    table = {}
    for size in sizes:
        table[size] = measure(size)
        print(f"{size} ranks measured", file=sys.stderr, flush=True)
    width = max(map(len, FIGURES.values()))
    print(f"{'':{width}} " + " ".join(f"{size:>8}" for size in sizes) + "   grows")
    for name, words in FIGURES.items():
        values = [table[size][name] for size in sizes]
        grows = math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]) if len(sizes) > 1 else math.nan
        print(f"{words:{width}} " + " ".join(f"{value:8.2f}" for value in values) + f"   {grows:5.1f}")


if __name__ == "__main__":
    main()
