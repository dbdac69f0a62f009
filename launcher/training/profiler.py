"""A trace of a few steps by torch's profiler."""

import logging
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("launcher")


class Profiler:
    """A torch profiler over a few steps, once they run evenly; its trace opens in chrome://tracing or Perfetto.

    Args:
        path: File of the trace, such as run/trace.json.
    """

    FIRST, STEPS = 10, 5  # steps before, and steps in the trace

    def __init__(self, path: Path) -> None:
        self.path = path
        self._profiler = torch.profiler.profile(
            schedule=torch.profiler.schedule(skip_first=self.FIRST, wait=0, warmup=1, active=self.STEPS, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profiler.start()

    def step(self) -> None:
        """A training step has ended."""
        self._profiler.step()

    def _write(self, profiler: Any) -> None:
        profiler.export_chrome_trace(str(self.path))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40)
        log.info("profile    %s\n%s", self.path, table)

    def close(self) -> None:
        """Stop, also where the run ended before the trace was full."""
        self._profiler.stop()
