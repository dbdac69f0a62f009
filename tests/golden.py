"""What some 35 runs leave behind, kept before a change of the code and compared after it.

    python tests/golden.py write golden.json      # before the change
    python tests/golden.py compare golden.json    # after it: a line per run, exit status 1 where one differs

For each run directory: the bytes of every tensor of every checkpoint that it keeps, the record (metrics.jsonl), what
neither the clock, the memory nor versions change in summary.json, evaluations, predictions, and the names of its files.
Runs end after some updates of small models on 1, 2 and 3 ranks: all experiments, settings in combination, a sweep,
runs that are stopped and resumed, early stopping, fine-tuning, evaluations and predictions.

The values are those of one machine and one version of torch, so the file is not committed: write it from the commit
that you compare with, on the machine where you compare. `--tree DIRECTORY` runs another checkout.

Nothing of the package is imported here, and no module of it is named: a run is the command line of launcher/train.py
(and of the console command, for what has no file of that name), with options of conf/ by name. So modules may move.
The processes are forked from this one, which has imported torch already.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

from golden_runs import BOOK, COMMON, FASHION_MNIST, OWN, RUNS, Run, Step

HERE = next(path for path in Path(__file__).resolve().parents if (path / "launcher" / "train.py").exists())
WARM = """
    torch torch._dynamo torch.distributed torch.distributed.fsdp torch.distributed.tensor torch.nn.parallel accelerate
    safetensors.torch hydra.main matplotlib.figure matplotlib.backends.backend_agg matplotlib.backends.backend_svg
    numpy.random rich.live rich.table sklearn.datasets torchvision timm torchmetrics PIL.Image
"""
VARIES = {"time_shares", "peak_memory_mb", "git_commit", "versions"}  # in summary.json, beside seconds and rates
PATIENCE = 240  # seconds that a step may take
CONTEXT = multiprocessing.get_context("fork")


class Failed(Exception):
    """A run did not end as it should have."""


# --- Running ---------------------------------------------------------------------------------------------------------


def environment(tree: Path) -> dict[str, str]:
    """Variables of all runs: one thread, no accelerator, nothing of a job that this one runs in."""
    dropped = "WANDB_ SLURM_ LAUNCHER_ ACCELERATE_ TORCHELASTIC_ RANK WORLD_SIZE LOCAL_ MASTER_"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(dropped.split()))}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(tree),  # before a checkout that is installed
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a driver would not survive a fork
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }


def inputs(place: Path) -> None:
    """Write the files that runs read: a table, a text and folders of images, the same each time."""
    import numpy
    from PIL import Image

    place.mkdir()
    drawn = random.Random(1)
    with (place / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "height", "age", "price"])
        for _ in range(130):
            values = [round(drawn.gauss(0, 1), 3) for _ in range(3)]
            writer.writerow([*values, round(2 * values[0] - values[1] + drawn.gauss(0, 0.1), 3)])
    words = BOOK.split()
    (place / "book.txt").write_text(" ".join(drawn.choice(words) for _ in range(2500)))
    pixels = numpy.random.RandomState(1)
    for part, count in (("train", 30), ("val", 6)):
        for number, name in enumerate(("ant", "bee", "cat")):
            folder = place / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = pixels.randint(60 * number, 60 * number + 100, (14, 12, 3)).astype("uint8")
                Image.fromarray(image).save(folder / f"{i:02}.png")


def entry(tree: Path, command: str) -> tuple[str, list[str]]:
    """The function of a console command, as `module:function`, and the first words of its command line."""
    scripts = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]
    if "launcher" in scripts:
        return scripts["launcher"], ["launcher", command]
    return scripts[f"launcher-{command}"], [f"launcher-{command}"]


def program(tree: Path, command: str, words: list[str]) -> None:
    """Run a program of a checkout in this process, with the path that Python would have given it."""
    file = tree / "launcher" / f"{command}.py"
    own = Path(__file__).resolve().parent
    rest = [p for p in sys.path if Path(p or ".").resolve() != own and not (Path(p) / "launcher" / "train.py").exists()]
    if command == "train":
        sys.path[:] = [str(file.parent), str(tree), *rest]
        sys.argv[:] = [str(file), *words]
        runpy.run_path(str(file), run_name="__main__")
    else:
        function, (name, *subcommand) = entry(tree, command)
        sys.path[:] = [str(tree / "bin"), str(tree), *rest]
        sys.argv[:] = [str(tree / "bin" / name), *subcommand, *words]
        module, _, name = function.partition(":")
        sys.exit(getattr(import_module(module), name)())


def rank(tree: Path, place: Path, step: Step, number: int, port: int) -> None:
    """One rank of a step, in a process of its own."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(place / f"output.{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment(tree) | {"HF_HOME": str(place / "cache")})
    if step.ranks > 1:
        group = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": step.ranks, "LOCAL_WORLD_SIZE": step.ranks}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()})
    os.chdir(place)
    program(tree, step.program, [*(COMMON if step.program == "train" else ()), *step.words.split()])


def stop(place: Path, processes: Sequence[Any], deadline: float) -> None:
    """Ask a run to stop as soon as it has a record.

    Raises:
        Failed: It ended by itself before that, or has none yet at `deadline` (of time.monotonic).
    """
    record = place / "run" / "metrics.jsonl"
    while not (record.exists() and record.stat().st_size):
        if time.monotonic() > deadline or not any(process.is_alive() for process in processes):
            raise Failed(f"it had no record by which to stop it\n{said(place)}")
        time.sleep(0.005)
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)


def said(place: Path) -> str:
    """The end of what each rank has printed."""
    return "".join(file.read_text(errors="replace")[-1500:] for file in sorted(place.glob("output.*")))


def do(tree: Path, place: Path, step: Step) -> None:
    """Run a step of a run in its directory.

    Raises:
        Failed: A rank did not end with exit status 0, or the run was to be stopped and was not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [CONTEXT.Process(target=rank, args=(tree, place, step, n, port)) for n in range(step.ranks)]
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.start()
        if step.stopped:
            stop(place, processes, deadline)
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        status = [process.exitcode for process in processes]
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()  # a sweep ends its trials
                process.join(5)
                if process.is_alive():
                    os.killpg(process.pid, signal.SIGKILL)
    if status != [0] * step.ranks:
        raise Failed(f"exit status {status} (None: after {PATIENCE} s) of {step.words}\n{said(place)}")
    if step.stopped and json.loads((place / "run" / "summary.json").read_text())["status"] == "finished":
        raise Failed("it finished before it was stopped")


def missing(run: Run) -> str | None:
    """What a run needs that this machine lacks, in words."""
    for need in run.needs.split():
        if need == "fashion_mnist" and not FASHION_MNIST.is_dir():
            return f"no Fashion-MNIST in {FASHION_MNIST} (apt install dataset-fashion-mnist)"
        if need != "fashion_mnist" and util.find_spec(need) is None:
            return f"the package {need} is not installed"
    return None


def carry_out(run: Run, tree: Path, work: Path) -> None:
    """All steps of a run, and what they left behind in result.json beside its directory."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the ranks are ended too
    place, begun = work / run.name, time.monotonic()
    place.mkdir()
    (place / "golden_own.py").write_text(OWN)
    result: dict[str, Any]
    try:
        for step in run.steps:
            do(tree, place, step)
        result = {"left": left_behind(place)}
    except Exception as error:
        result = {"failed": str(error) if isinstance(error, Failed) else traceback.format_exc()}
    result["seconds"] = round(time.monotonic() - begun, 1)
    (work / f"{run.name}.json").write_text(json.dumps(result))


def carry_out_all(runs: Sequence[Run], tree: Path, jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of runs and what came of them, as they end.

    Yields:
        The name, and a result with `left` (what it left behind), `failed` or `skipped` (why, in words).
    """
    os.environ.update(environment(tree))
    for name in WARM.split():
        if util.find_spec(name.partition(".")[0]):
            import_module(name)
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(prefix="golden-", dir=memory if os.access(memory, os.W_OK) else None))
    waiting, running = list(runs), {}
    try:
        inputs(work / "inputs")
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                if why := missing(run):
                    yield run.name, {"skipped": why}
                    continue
                running[run.name] = CONTEXT.Process(target=carry_out, args=(run, tree, work))
                running[run.name].start()
            multiprocessing.connection.wait([process.sentinel for process in running.values()])
            for name in [name for name, process in running.items() if process.exitcode is not None]:
                running.pop(name).join()
                file = work / f"{name}.json"
                yield name, json.loads(file.read_text()) if file.exists() else {"failed": "its process was killed"}
                shutil.rmtree(work / name)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
        shutil.rmtree(work, ignore_errors=True)


# --- What is kept ----------------------------------------------------------------------------------------------------


def tensors(file: Path) -> dict[str, str]:
    """The tensors of a safetensors file: name to data type, shape and a hash of the bytes."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, found = json.loads(content[8 : 8 + size]), {}
    for name, tensor in header.items():
        if name != "__metadata__":
            first, end = (8 + size + offset for offset in tensor["data_offsets"])
            digest = hashlib.sha256(content[first:end]).hexdigest()[:16]
            found[name] = f"{tensor['dtype']} {tensor['shape']} {digest}"
    return found


def left_behind(place: Path) -> dict[str, Any]:
    """What is compared of each run directory below a place, by its path there."""
    found = {}
    for record in sorted(place.rglob("metrics.jsonl")):
        path = record.parent
        summary = json.loads((path / "summary.json").read_text())
        weights: dict[str, dict[str, str]] = {}
        for file in sorted(path.glob("checkpoints/step_*/*.safetensors")):  # one, or its shards
            weights.setdefault(file.parent.name, {}).update(tensors(file))
        files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        files = [file for file in files if not file.startswith("changes-")]  # what git has not committed of the tree
        found[path.relative_to(place).as_posix()] = {
            "record": [json.loads(line) for line in record.read_text().splitlines()],
            "record_sha256": hashlib.sha256(record.read_bytes()).hexdigest(),
            "weights": weights,
            "summary": {
                name: value
                for name, value in summary.items()
                if name not in VARIES and not name.endswith(("_seconds", "_per_second"))
            },
            "evaluations": {file.name: json.loads(file.read_text()) for file in sorted(path.glob("evaluation*.json"))},
            "predictions": {file.name: file.read_text().splitlines() for file in sorted(path.glob("*.csv"))},
            "files": sorted(files),
        }
    if not found:
        raise Failed("it left no run directory behind")
    return found


def differences(before: Any, after: Any, name: str = "") -> Iterator[str]:
    """Where two things that were read from JSON differ, in the order of the first."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            place = f"{name}: {key}" if name else key
            if key in before and key in after:
                yield from differences(before[key], after[key], place)
            else:
                yield f"{place} {'is new' if key in after else 'is gone'}"
    elif name.endswith(": files"):
        gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        if gone or new:
            yield f"{name}: gone {gone}, new {new}"
    elif isinstance(before, list) and isinstance(after, list) and before and isinstance(before[0], dict | str):
        if len(before) != len(after):
            yield f"{name} has {len(before)} lines before, {len(after)} after"
        for number, (one, other) in enumerate(zip(before, after, strict=False), 1):
            yield from differences(one, other, f"{name} line {number}")
    elif json.dumps(before) != json.dumps(after):  # NaN is what it was
        yield f"{name} is {json.dumps(before)[:200]} before, {json.dumps(after)[:200]} after"


def about(tree: Path) -> dict[str, str]:
    """What the values belong to; the commit is the last one that changed what is run."""
    git = ["git", "-C", str(tree), "log", "-1", "--format=%h", "--", "launcher", "conf", "hydra_plugins"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    found = {"commit": commit, "machine": platform.machine(), "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in ("torch", "numpy", "accelerate")}


# --- The command line ------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """Prints what came of each run, a line each."""

    faults: int = 0

    def show(self, name: str, what: str, fault: bool = False) -> None:
        """Print the line of a run."""
        self.faults += fault
        print(f"{name:<28} {what}", flush=True)

    def compare(self, name: str, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
        """Print whether a run left behind what it did before."""
        if before is None or "left" not in before:
            self.show(name, "nothing to compare with" + (f": {before['skipped']}" if before else ""))
        elif found := list(differences(before["left"], after["left"])):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            self.show(name, f"DIFFERS  {found[0]}{more}", True)
        else:
            self.show(name, f"the same  {after['seconds']} s")


def main() -> int:
    """Write or compare; 1 where a run failed or differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["write", "compare"])
    parser.add_argument("file", type=Path, help="JSON file of what the runs left behind")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[run.name for run in RUNS], help="these runs alone"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--tree", type=Path, default=HERE, help="checkout to run (default: this one)")
    asked = parser.parse_args()
    tree, report, begun = asked.tree.resolve(), Report(), time.monotonic()
    runs = [run for run in RUNS if asked.only is None or run.name in asked.only]
    kept: dict[str, Any] = {"about": about(tree), "runs": {}}
    before = json.loads(asked.file.read_text()) if asked.action == "compare" else None
    if before is not None and (found := list(differences(before["about"], kept["about"]))):
        print("note: " + "; ".join(found))
    for name, result in carry_out_all(runs, tree, asked.jobs):
        if "failed" in result:
            first, *rest = result["failed"].strip().splitlines()
            report.show(name, f"FAILED  {first}", True)
            print(*[f"    {line}" for line in rest], sep="\n", file=sys.stderr)
            continue
        kept["runs"][name] = result
        if "skipped" in result:
            lost = before is not None and "left" in before["runs"].get(name, {})
            report.show(name, f"skipped  {result['skipped']}{', as it was not before' if lost else ''}", lost)
        elif before is None:
            report.show(name, f"kept  {result['seconds']} s")
        else:
            report.compare(name, before["runs"].get(name), result)
    if before is None and not report.faults:
        asked.file.write_text(json.dumps(kept, indent=1) + "\n")
    bad = f"{report.faults} {'failed' if before is None else 'differ or failed'}"
    print(f"{len(runs)} runs, {bad}, {time.monotonic() - begun:.0f} s")
    return int(report.faults > 0)


if __name__ == "__main__":
    sys.exit(main())
