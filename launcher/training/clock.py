"""Where the time of a run goes. Nothing measured here reaches the record."""

import contextlib
import logging
import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from launcher.batching.plan import BatchPlan
from launcher.batching.stream import Batch
from launcher.core.compat import ddp_timings
from launcher.distributed.ranks import Ranks

log = logging.getLogger("launcher")

OUTLIER = 1.25  # a rank busy so many times as long as the median of all is named
WATCHED = 2.0  # seconds of training until the ranks are compared: less says little


class PeakMemory:
    """The most memory that this process has taken since this was made.

    A GPU tells what its allocator has given out, a CPU what of the process is resident: no one figure is for both.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # sets VmHWM to what is resident now; elsewhere than on Linux it counts from the start

    def mb(self) -> float:
        """The peak so far, in MB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Rates, the seconds that a run spends on what, and its memory, all counted from when this is made.

    Args:
        step: Updates done before this process.
        device: For its peak memory.
        ranks: Which rank this is.
        forward: What the training calls; DDP measures a sample of its own steps.
        flops: Operations per sample; None where that is not known.
        peak: Operations per second of a device; likewise.
        tokens: Tokens per sample of a language task.
    """

    def __init__(
        self,
        step: int,
        device: torch.device,
        ranks: Ranks,
        forward: Any = None,
        flops: float | None = None,
        peak: float | None = None,
        tokens: int | None = None,
    ) -> None:
        self.tokens, self.memory = tokens, PeakMemory(device)
        self.device, self.ranks, self.flops, self.peak = device, ranks, flops, peak
        self.ddp = forward if isinstance(forward, DistributedDataParallel) else None
        self._first_step = self._row_step = step
        self._begun: float | None = None
        self._made = self._row_begun = time.perf_counter()
        self._spent = {"data_wait": 0.0, "communication": 0.0, "evaluating": 0.0, "saving": 0.0}
        self._row_spent = dict(self._spent)
        self._watched = torch.zeros(ranks.world_size, 2, dtype=torch.float64)  # [rank, (busy, in all)]
        self._named: int | None = None

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count the time until each is there."""
        if self._begun is None:
            self._begun = time.perf_counter()
        self._row_begun = time.perf_counter()
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self._spent["data_wait"] += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def go_back(self, step: int) -> None:
        """Count the next row from an earlier step on; what was spent stays spent."""
        self._row_step, self._row_spent = step, dict(self._spent)

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        before = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - before

    def row(self, step: int, plan: BatchPlan) -> dict[str, float]:
        """A row of timings.jsonl: rates and seconds since the last row. Every rank calls it at the same step."""
        now, steps = time.perf_counter(), step - self._row_step
        busy = self._spent["data_wait"] - self._row_spent["data_wait"]
        if self.ddp is not None and steps:
            found = ddp_timings(self.ddp)  # what is left of communication after the backward it runs beside
            exposed = found.get("avg_backward_comm_time", 0) - found.get("avg_backward_compute_comm_overlap_time", 0)
            self._spent["communication"] += max(0, exposed) / 1e9 * steps
            busy += (found.get("avg_forward_compute_time", 0) + found.get("avg_backward_compute_time", 0)) / 1e9 * steps
        spent = {name: total - self._row_spent[name] for name, total in self._spent.items()}
        training = max(now - self._row_begun - spent["evaluating"] - spent["saving"], 1e-9)
        rate = steps / training
        slowest, memory = self._compare(busy, training)
        row: dict[str, float] = {
            "step": step,
            "time": time.time(),
            **(self._rates(rate, plan) if steps else {}),  # none where a run goes on with an evaluation put off
            **spent,
            "computing": max(0.0, training - spent["data_wait"] - spent["communication"]),
            "memory_mb": memory,
        }
        if slowest is not None:
            row["slowest_rank"] = slowest
        self._row_begun, self._row_step, self._row_spent = now, step, dict(self._spent)
        return row

    def totals(self, step: int, plan: BatchPlan, memory_mb: Iterable[float]) -> dict[str, Any]:
        """The rates of the whole loop and the share of time that each part of it took, for the summary."""
        now = time.perf_counter()
        whole = max(now - (self._begun or self._made), 1e-9)
        training = max(whole - self._spent["evaluating"] - self._spent["saving"], 1e-9)
        shares = {name: seconds / whole for name, seconds in self._spent.items()}
        return {
            **self._rates((step - self._first_step) / training, plan),
            "training_seconds": training,
            **{f"{name}_seconds": seconds for name, seconds in self._spent.items()},
            "time_shares": {"computing": max(0.0, 1 - sum(shares.values())), **shares},
            "peak_memory_mb": max(memory_mb),
        }

    def _rates(self, steps_per_second: float, plan: BatchPlan) -> dict[str, float]:
        samples = steps_per_second * plan.samples / plan.steps_per_epoch
        rates = {"steps_per_second": steps_per_second, "samples_per_second": samples}
        if self.tokens is not None:
            rates["tokens_per_second"] = samples * self.tokens
        if self.flops is not None and self.peak is not None:
            rates["mfu"] = samples * self.flops / (self.peak * self.ranks.world_size)
        return rates

    def _compare(self, busy: float, seconds: float) -> tuple[int | None, float]:
        """The rank that the others wait for, if there is one, and the peak memory in MB of the one that has most.

        A rank counts as busy while it waits for data and computes, not while it waits for the gradients of others.
        """
        if self.ranks.world_size == 1:
            return None, self.memory.mb()
        mine = torch.tensor([busy, seconds, self.memory.mb()], dtype=torch.float64, device=self.device)
        every = [torch.empty_like(mine) for _ in range(self.ranks.world_size)]
        dist.all_gather(every, mine)
        found = torch.stack(every).cpu()
        memory = found[:, 2].max().item()
        self._watched += found[:, :2]
        times, (seconds, *_) = self._watched.T.tolist()
        if seconds < WATCHED:
            return None, memory
        self._watched.zero_()
        slowest = max(range(len(times)), key=times.__getitem__)
        others = statistics.median(times[:slowest] + times[slowest + 1 :])
        if times[slowest] < OUTLIER * others or times[slowest] - others < 0.1 * seconds:
            return None, memory
        if slowest != self._named and self.ranks.rank == 0:
            log.warning(
                "rank %d is slow: busy for %.2f of the last %.2f s, the others for %.2f s",
                slowest, times[slowest], seconds, others,
            )  # fmt: skip
        self._named = slowest
        return slowest, memory


def start_profiler(path: Path) -> torch.profiler.profile:
    """Start a torch profiler of five steps, once they run evenly; its trace opens in chrome://tracing or Perfetto."""

    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(path))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40)
        log.info("profile    %s\n%s", path, table)

    schedule = torch.profiler.schedule(skip_first=10, wait=0, warmup=1, active=5, repeat=1)
    profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=write, record_shapes=True)
    profiler.start()
    return profiler
