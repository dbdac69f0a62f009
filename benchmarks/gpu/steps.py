"""What the steps of a session do: python -m benchmarks.gpu.steps NAME ROWS [--dry] [--seconds 60].

Each writes what it finds into the file ROWS, a JSON object a line, as soon as it is found: `what` was looked at,
whether it holds (`ok`), and a `figure`; or the measurement of a `contender` in a `round`.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = [str(ROOT / "tests"), str(ROOT / "tests/gpu")]
CLOSE = 2e-3  # by which the losses of two ways to compute the same may differ after some updates in float32


class Session:
    """Where a step works and writes.

    Args:
        rows: File for what it finds.
        dry: Whether on the CPU, with small sizes.
        seconds: That it has.
    """

    def __init__(self, rows: Path, dry: bool, seconds: float) -> None:
        self.rows, self.dry, self.end = rows, dry, time.monotonic() + seconds
        self.place = rows.parent
        os.environ["GPU_TESTS_ON"] = "cpu" if dry else "cuda"
        os.environ["OMP_NUM_THREADS"] = "1"
        # tests/processes.py starts real runs, forked from a process that has imported torch already.
        os.environ["PYTHONPATH"] = os.pathsep.join([*TESTS, str(ROOT), os.environ.get("PYTHONPATH", "")])
        sys.path[:0] = TESTS

    @cached_property
    def runs(self) -> Any:
        """tests/gpu/on_gpu.py, which starts runs on the GPU."""
        return importlib.import_module("on_gpu")

    @cached_property
    def processes(self) -> Any:
        """tests/processes.py."""
        return importlib.import_module("processes")

    def note(self, row: dict[str, Any]) -> None:
        """Write down what was found."""
        print(row, flush=True)
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def check(self, what: str, look: Callable[[], tuple[bool | None, str]]) -> None:
        """Note whether something holds; what fails is noted, too, and the next look is taken."""
        begun = time.monotonic()
        try:
            ok, figure = look()
        except Exception as error:
            said = str(error).strip() or type(error).__name__
            ok, figure = False, said.splitlines()[-1][:200]
            print(said, flush=True)
        self.note({"what": what, "ok": ok, "figure": f"{figure} ({time.monotonic() - begun:.1f} s)"})

    def work(self) -> Path:
        """A new directory for a run."""
        return Path(tempfile.mkdtemp(dir=self.place))

    def train(self, words: Sequence[str], world: int = 1, directory: Path | None = None) -> Path:
        """A run to its end, and its directory."""
        directory = directory or self.work()
        name = f"io{len(list(directory.glob('io*')))}"
        return self.runs.finish(list(words), directory, world, name)

    def losses(self, directory: Path) -> list[float]:
        """Of each update that was logged."""
        return [row["train/loss"] for row in self.processes.rows(directory / "run") if "train/loss" in row]


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference of two series, which must be of one length."""
    return max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in zip(one, other, strict=True))


# --- What holds -----------------------------------------------------------------------------------------------------


def doctor(session: Session) -> None:
    """The launcher's own look at the machine."""
    device = ["--device", "cpu"] if session.dry else []
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", *device, str(session.work())],
        capture_output=True, text=True, cwd=session.place,
    )  # fmt: skip
    print(done.stdout, done.stderr, flush=True)
    for line in done.stdout.splitlines():
        if line.strip():
            session.note({"what": line[:11].strip(), "ok": True, "figure": line[11:].strip()})
    if done.returncode:
        session.note({"what": "doctor", "ok": False, "figure": done.stderr.strip()[-300:]})


# `tests/test_a.py::test_b[c] PASSED [ 5%]`, and what xdist makes of it: `[gw0] [ 5%] PASSED tests/test_a.py::test_b[c]`
OUTCOME = re.compile(
    r"\[gw\d+\] \[ *\d+%\] (?P<kind>[A-Z]+) (?P<test>.+)$"
    r"|(?P<test2>\S+::.+) (?P<kind2>[A-Z]+)(?: \(.*\))? *\[ *\d+%\]$"
)


def tests(session: Session) -> None:
    """pytest -m gpu, of the files that have such tests; several at a time where pytest-xdist is there."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=short", "-v", "-rE"]
    if session.dry:
        marked = [path for path in marked if path.parent.name == "gpu"]
        options += ["-k", "ddp-channels_last or (SIGTERM and 2) or (ten_updates and ddp) or erasing"]
    elif importlib.util.find_spec("xdist"):
        options += ["-n", "4", "--dist", "loadfile"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    words = [sys.executable, "-m", "pytest", *options, "-m", "gpu", *map(str, marked)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    counts: Counter[str] = Counter()
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := OUTCOME.match(line.rstrip()):
            kind, test = found["kind"] or found["kind2"], found["test"] or found["test2"]
            counts[kind.lower()] += 1
            if kind in ("FAILED", "ERROR"):
                session.note({"what": test, "ok": False, "figure": "see tests.log"})
        elif line.startswith("ERROR "):  # a file that could not be imported
            session.note({"what": line[6:].strip()[:200], "ok": False, "figure": "see tests.log"})
    ok = process.wait() == 0
    said = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    session.note({"what": "all of them", "ok": ok, "figure": said or "none ran"})


def combinations(session: Session) -> None:
    """channels_last with each optimizer, in two parts; canonical shards beside none."""
    half = 4 if session.dry else 40
    images = [*session.runs.IMAGES, "channels_last=true"]
    optimizers = {
        "adam": ["optimizer=adam"], "sgd, momentum": ["optimizer=sgd", "optimizer.momentum=0.9"],
        "muon": ["optimizer=muon"], "rmsprop": ["optimizer=rmsprop", "optimizer.lr=0.0001"],
    }  # fmt: skip

    def parted(words: Sequence[str]) -> tuple[bool, str]:
        straight = session.train([*words, f"max_steps={2 * half}"])
        directory = session.train([*words, f"max_steps={half}"])
        session.train([*words, f"max_steps={2 * half}"], directory=directory)
        session.runs.same_state(straight, directory)
        return True, f"{half} updates, then to {2 * half}: the same bits"

    def exact(words: Sequence[str]) -> tuple[bool, str]:
        found = [session.losses(session.train([*words, f"max_steps={half}", *more]))
                 for more in ([], ["exact_across_devices=true"])]  # fmt: skip
        return difference(*found) < CLOSE, f"losses of {half} updates differ by at most {difference(*found):.1e}"

    for name, words in optimizers.items():
        session.check(f"channels_last, {name}: resumed", lambda words=words: parted([*images, *words]))
    session.check("exact_across_devices, channels_last, adam: as without", lambda: exact([*images, "optimizer=adam"]))


def smoke(session: Session) -> None:
    """One short run of each."""
    images, steps = session.runs.IMAGES, ["max_steps=20"]
    runs: dict[str, tuple[list[str], int]] = {
        "bf16": ([*images, "mixed_precision=bf16", "channels_last=true"], 1),
        "fp16": ([*images, "mixed_precision=fp16"], 1),
        "batch.max_per_device=auto": ([*images, "batch.max_per_device=auto"], 1),
        "fsdp, two ranks, bf16": ([*session.runs.TOKENS, "strategy=fsdp", "mixed_precision=bf16"], 2),
        "compile": ([*session.runs.TOKENS, "compile=true"], 1),
    }

    def learns(words: list[str], world: int) -> tuple[bool, str]:
        losses = session.losses(session.train([*words, *steps, "optimizer=adamw", "optimizer.lr=0.01"], world))
        ok = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
        return ok, f"loss {losses[0]:.3f} to {losses[-1]:.3f} in 20 updates"

    for name, (words, world) in runs.items():
        if name == "fp16" and session.dry:
            session.note({"what": name, "ok": None, "figure": "a CPU has none"})
        elif name == "compile" and not (shutil.which("cc") or shutil.which("gcc")):
            session.note({"what": name, "ok": None, "figure": "needs a C compiler, which is not there"})
        else:
            session.check(name, lambda words=words, world=world: learns(words, world))


def _kinds(session: Session) -> dict[str, list[str]]:
    images, steps = session.runs.IMAGES, "max_steps=12"
    kinds = {
        "cnn, channels_last, adam": [*images, steps, "optimizer=adam", "channels_last=true"],
        "transformer, adamw": [*session.runs.TOKENS, steps],
    }
    return kinds if session.dry else kinds | {"cnn, sgd": [*images, steps, "optimizer=sgd"]}


def rows(session: Session) -> None:
    """The losses of a run on the GPU beside those on the CPU."""

    def compare(words: list[str]) -> tuple[bool, str]:
        there, here = session.losses(session.train(words)), session.work()
        session.processes.train([*words, "device=cpu"], here).ok(120)
        found = difference(there, session.losses(here))
        return found < CLOSE, f"losses of 12 updates differ by at most {found:.1e}"

    for name, words in _kinds(session).items():
        session.check(name, lambda words=words: compare(words))


def ranks(session: Session) -> None:
    """Two ranks on the GPU beside one process."""

    def compare(words: list[str]) -> tuple[bool, str]:
        alone, both = (session.losses(session.train(words, world)) for world in (1, 2))
        found = difference(alone, both)
        return found < CLOSE, f"losses of 12 updates differ by at most {found:.1e}"

    for strategy in ("ddp", "fsdp"):
        for name, words in _kinds(session).items():
            if strategy == "ddp" or "channels_last" not in name:
                session.check(f"{strategy}: {name}", lambda words=[*words, f"strategy={strategy}"]: compare(words))


# --- How fast -------------------------------------------------------------------------------------------------------


def _by_hand(workload: Any, device: str, seed: int, path: Path) -> None:
    """In a process of its own: the loop, timed."""
    import torch

    from benchmarks.gpu.workloads import train_by_hand

    path.write_text(json.dumps(train_by_hand(workload, torch.device(device), seed)))


def _trace_by_hand(workload: Any, device: str, path: Path) -> None:
    import torch

    from benchmarks.gpu.workloads import profile_by_hand

    profile_by_hand(workload, torch.device(device), path)


def beside(session: Session, name: str) -> None:
    """Time the launcher and the loop in turns, as long as there is time, and count their waits for the device."""
    from benchmarks.contenders import read_launcher
    from benchmarks.gpu import workloads
    from benchmarks.gpu.traces import synchronisations

    workload = (workloads.DRY if session.dry else workloads.WORKLOADS)[name]
    device = "cpu" if session.dry else "cuda"

    def launcher(number: int) -> dict[str, Any]:
        directory = session.train(workloads.words(workload, number))
        found = read_launcher(directory / "run", 0.0, workload.steps, workload.warm)
        shares = [json.loads(line).get("mfu") for line in (directory / "run/timings.jsonl").read_text().splitlines()]
        known = [share for share in shares[1:] if share is not None]
        return {
            "steps_per_second": found["steps_per_second"],
            "samples_per_second": found["steps_per_second"] * workload.batch,
            **({} if session.dry else {"peak_memory_mb": found["peak_memory_mb"]}),
            **({"mfu": statistics.median(known)} if known else {}),
        }

    def by_hand(number: int) -> dict[str, Any]:
        directory = session.work()
        arguments = (workload, device, number, directory / "found.json")
        session.processes.start(_by_hand, arguments, directory / "io").ok(300)
        found: dict[str, Any] = json.loads((directory / "found.json").read_text())
        return found

    def trace_of_launcher() -> Path:
        few = replace(workload, steps=20, log_every=1000)
        return session.train([*workloads.words(few, 0), "profile=true"]) / "run/trace.json"

    def trace_of_loop() -> Path:
        directory = session.work()
        path = directory / "trace.json"
        session.processes.start(_trace_by_hand, (workload, device, path), directory / "io").ok(300)
        return path

    contenders = {"launcher": launcher, "by hand": by_hand}
    traces = {"launcher": trace_of_launcher, "by hand": trace_of_loop}
    begun = time.monotonic()
    for number in range(1 if session.dry else 3):
        now = time.monotonic()
        if number and now + (now - begun) / number > session.end:  # another round would not come to its end
            break
        for contender in list(contenders) if number % 2 else reversed(contenders):
            session.note({"contender": contender, "round": number, **contenders[contender](number)})
        for contender, trace in traces.items() if number == 0 else ():
            session.note({"contender": contender, "round": 0, "synchronisations": synchronisations(trace())})


def resnet18(session: Session) -> None:
    """A convolutional network of real size."""
    beside(session, "resnet18")


def transformer(session: Session) -> None:
    """GPT-2 of 12 layers, on made tokens."""
    beside(session, "transformer")


def mlp(session: Session) -> None:
    """Nearly all overhead."""
    beside(session, "mlp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a step")
    parser.add_argument("rows", type=Path, help="file for what is found")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--seconds", type=float, default=60.0, help="that it has (default: 60)")
    options = parser.parse_args()
    session = Session(options.rows.resolve(), options.dry, options.seconds)
    # Under its own name: what runs in other processes is imported there.
    step = getattr(importlib.import_module("benchmarks.gpu.steps"), options.name)
    with suppress(KeyboardInterrupt):
        step(session)


if __name__ == "__main__":
    main()
