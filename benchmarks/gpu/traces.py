"""How often a step waits for the device, as torch's profiler has it: see launcher.training.clock.start_profiler."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def synchronisations(path: Path) -> float:
    """Waits for the device per step in a trace.

    A wait is a call such as cudaStreamSynchronize; reading a number (`.item()`) makes one. On a CPU, where there are no
    such calls, the reads are what counts.

    Args:
        path: trace.json of steps that the profiler has marked; what lies between and after them does not count.

    Raises:
        ValueError: The trace has no step.
    """
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
    steps = [event for event in events if event["name"].startswith("ProfilerStep#")]
    steps = [event for event in steps if not event.get("cat", "").startswith("gpu")]  # the device's part of them
    if not steps:
        raise ValueError(f"{path}: no step was marked")

    def inside(fits: Callable[[dict[str, Any]], bool]) -> int:
        found = (event["ts"] for event in events if fits(event))
        return sum(any(0 <= ts - step["ts"] <= step["dur"] for step in steps) for ts in found)

    waits = inside(lambda event: event.get("cat", "").startswith("cuda") and event["name"].endswith("Synchronize"))
    reads = inside(lambda event: event["name"] == "aten::_local_scalar_dense")
    return max(waits, reads) / len(steps)
