"""The steps of benchmarks/gpu/run.sh, one after the other: each in a process of its own, with a limit of its own.

A step that fails, hangs, or lacks a package is recorded as such, and the next one begins. After each, the results
stand in OUT/results.json, as tables in OUT/figures.md, and what the step printed in OUT/STEP.log.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import figures
from launcher.core.files import write_text

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ("torch", "numpy", "accelerate", "hydra", "omegaconf", "antlr4", "yaml", "safetensors", "rich")
GRACE = 5.0  # seconds in which a step that was killed must be gone


@dataclass(frozen=True)
class Step:
    """A part of the session.

    Args:
        name: Of its function in steps.py.
        what: Heading of its figures.
        limit: Most seconds that it may take.
        needs: Packages that must be importable.
    """

    name: str
    what: str
    limit: float
    needs: tuple[str, ...] = TRAINING

    def missing(self) -> list[str]:
        """Packages that are not there."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


STEPS = (
    Step("doctor", "The machine, as `launcher doctor` sees it", 40),
    Step("tests", "The tests that need a GPU", 220, (*TRAINING, "pytest")),
    Step("combinations", "Resumed to the bit with channels_last, and canonical shards", 100),
    Step("smoke", "Precisions, compiler, automatic batch size, FSDP2", 90),
    Step("rows", "The same run on the CPU", 50),
    Step("ranks", "Two ranks that share the GPU, beside one process", 50),
    Step("resnet18", "ResNet-18, bf16 and channels_last, beside a hand-written loop", 75),
    Step("transformer", "Transformer, bf16, beside a hand-written loop", 70),
    Step("mlp", "A small MLP beside a hand-written loop: overhead alone", 45),
)


@functools.cache
def machine() -> dict[str, Any]:
    """What the figures are of; asked in a process of its own, which may crash."""
    code = (
        "import json, torch; there = torch.cuda.is_available(); "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, "
        "'device': torch.cuda.get_device_name() if there else None, "
        "'memory_gb': round(torch.cuda.get_device_properties(0).total_memory / 2**30) if there else None}))"
    )
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    for name, command in {
        "torch": [sys.executable, "-c", code],
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        "commit": ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
    }.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        said = (done.stdout.strip().splitlines() or [""])[-1]
        found |= json.loads(said) if name == "torch" else {name: said}
    return found


def run_step(step: Step, seconds: float, command: Sequence[str], rows: Path, log: Path) -> dict[str, Any]:
    """Run a step in a session of its own, and end all of it when its time is over.

    Args:
        step: Which.
        seconds: That it may take.
        command: Its process.
        rows: Where it writes what it found, a JSON object a line.
        log: Takes what it prints.

    Returns:
        Its entry in results.json; `status` is `done`, `failed`, `out of time` or `lacking`.
    """
    entry: dict[str, Any] = {"name": step.name, "what": step.what, "limit": seconds}
    if missing := step.missing():
        note = f"not installed: {', '.join(missing)}. Put their wheels into .whl/"
        return entry | {"status": "lacking", "seconds": 0.0, "rows": [], "note": note}
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        end(process)
    entry |= {"status": status, "seconds": round(time.monotonic() - begun, 1), "rows": read_rows(rows)}
    if any(row.get("ok") is False for row in entry["rows"]) and status == "done":
        entry["status"] = "failed"
    if entry["status"] == "failed":
        entry["note"] = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return entry


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a step: its process, and those that it started, which may have sessions of their own."""
    for pid in [process.pid, *descendants(process.pid)]:
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
    process.wait(GRACE)


def descendants(pid: int) -> list[int]:
    """Processes that a living one has started, and theirs, as /proc has them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found, front = [], [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a step wrote, but for a last line that it did not finish."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def write(out: Path, results: dict[str, Any]) -> None:
    """Write results.json and figures.md, each whole or not at all."""
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "figures.md", figures.page(results))


def hold(
    out: Path, steps: Sequence[Step], seconds: float, dry: bool, command: Callable[[Step, Path, float], Sequence[str]]
) -> dict[str, Any]:
    """Run the steps, and write the results after each.

    Args:
        out: Directory of the results.
        steps: In their order.
        seconds: For all of them.
        dry: Whether this is on the CPU, with small sizes.
        command: The process of a step, given where it shall write its rows, and its seconds.

    Returns:
        What results.json has.
    """
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"dry": dry, "machine": machine(), "steps": []}
    write(out, results)
    for step in steps:
        left = min(step.limit, seconds - (time.monotonic() - begun))
        if left < 1:
            entry = {"name": step.name, "what": step.what, "status": "no time was left", "seconds": 0.0, "rows": []}
        else:
            place = Path(tempfile.mkdtemp(prefix=f"gpu-{step.name}-"))
            rows = place / "rows.jsonl"
            entry = run_step(step, left, command(step, rows, left), rows, out / f"{step.name}.log")
            shutil.rmtree(place, ignore_errors=True)
        results["steps"].append(entry)
        results["seconds"] = round(time.monotonic() - begun, 1)
        write(out, results)
        print(f"{step.name:<13} {entry['status']:<17} {entry['seconds']:6.1f} s", flush=True)
    return results


def main() -> int:
    """Exit status 1 where a step did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory of the results")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small sizes, in 3 minutes")
    parser.add_argument("--minutes", type=float, help="for all of it (default: 12; with --dry 3)")
    parser.add_argument("--only", help=f"some of {','.join(step.name for step in STEPS)}")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [step.name for step in STEPS]
    if unknown := set(chosen) - {step.name for step in STEPS}:
        parser.error(f"--only {','.join(sorted(unknown))}: no such step")
    if not options.dry and machine().get("device") is None:
        parser.error("torch sees no GPU here, or is not there: --dry runs on the CPU")

    def command(step: Step, rows: Path, seconds: float) -> list[str]:
        words = [sys.executable, "-m", "benchmarks.gpu.steps", step.name, str(rows), "--seconds", f"{seconds:.0f}"]
        return [*words, *(["--dry"] if options.dry else [])]

    seconds = 60 * (options.minutes or (3 if options.dry else 12))
    steps = [step for step in STEPS if step.name in chosen]
    results = hold(options.out.resolve(), steps, seconds, options.dry, command)
    print(f"{results['seconds']:.0f} s: {options.out}/figures.md")
    return 0 if all(entry["status"] == "done" for entry in results["steps"]) else 1


if __name__ == "__main__":
    sys.exit(main())
