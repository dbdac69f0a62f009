"""The launcher beside hand-written PyTorch, Accelerate, Lightning and the HF Trainer, doing the same work.

    python benchmarks/compare.py            # everything, at least five rounds: about 45 minutes on two cores
    python benchmarks/compare.py --quick    # whether it all runs: a few steps, two rounds
    python benchmarks/compare.py --only mlp,commands --repeats 9

Prints the goals and every suite as Markdown tables, and writes them with every single measurement to
compare.json and compare.png under --out. Each round runs every contender of a suite once, in its own process;
from round to round the order is rotated, and turned around in every other one, so that neither drift nor a
neighbour favours anyone. Contenders whose packages are missing are skipped with a message.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# The repository's root in place of this file's directory: what is imported is `benchmarks`, not its files.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import contenders  # noqa: E402
from benchmarks.contenders import Contender, RunFailed  # noqa: E402
from benchmarks.table import Goal, draw, format_goals, format_suite, judge_all  # noqa: E402

ACCELERATE, LIGHTNING, TRAINER = ("accelerate",), ("lightning", "wandb"), ("transformers", "wandb")

SUITES: dict[str, tuple[str, list[Contender]]] = {
    "mlp": (
        "Overhead-bound MLP 784-64-10, one process",
        [
            Contender("launcher +features", None, "mlp", features=True),
            Contender("launcher", None, "mlp"),
            Contender("sliced loop", "sliced_loop.py", "mlp"),
            Contender("DataLoader loop", "dataloader_loop.py", "mlp"),
            Contender("Accelerate", "accelerate_loop.py", "mlp", needs=ACCELERATE),
            Contender("Accelerate +features", "accelerate_loop.py", "mlp", features=True, needs=ACCELERATE),
            Contender("Lightning", "lightning_module.py", "mlp", needs=LIGHTNING),
            Contender("Lightning +features", "lightning_module.py", "mlp", features=True, needs=LIGHTNING),
            Contender("HF Trainer", "hf_trainer.py", "mlp", needs=TRAINER),
            Contender("HF Trainer +features", "hf_trainer.py", "mlp", features=True, needs=TRAINER),
        ],
    ),
    "mlp2": (
        "Overhead-bound MLP 784-64-10, two processes",
        [
            Contender("launcher +features", None, "mlp", True, 2),
            Contender("launcher", None, "mlp", False, 2),
            Contender("DDP loop", "ddp_loop.py", "mlp", False, 2),
            Contender("Accelerate +features", "accelerate_loop.py", "mlp", True, 2, ACCELERATE),
            Contender("Lightning +features", "lightning_module.py", "mlp", True, 2, LIGHTNING, torchrun=False),
            Contender("HF Trainer +features", "hf_trainer.py", "mlp", True, 2, TRAINER),
        ],
    ),
    "cnn": (
        "Compute-bound CNN (conv 32, conv 64, dense 128), one process",
        [
            Contender("launcher", None, "cnn"),
            Contender("launcher recipe", None, "cnn", overrides=tuple(contenders.RECIPE)),
            Contender("sliced loop", "sliced_loop.py", "cnn"),
            Contender("DataLoader loop", "dataloader_loop.py", "cnn"),
        ],
    ),
    "images": ("Folder of JPEG images, 224 x 224 random crops", []),  # run_images
    "commands": ("What a user waits for before any training", []),  # run_commands
}

RATE, START, MEMORY = "steps_per_second", "seconds_to_step_51", "peak_memory_mb"
ON = "launcher +features"
GOALS = [
    Goal("MLP, all features on, over the plain sliced loop", "mlp", ON, "sliced loop", RATE, "at least", 1.05),
    Goal("MLP, all features on, over the DataLoader loop", "mlp", ON, "DataLoader loop", RATE, "at least", 1.05),
    Goal("MLP, over Accelerate, same features", "mlp", ON, "Accelerate +features", RATE, "at least", 1.8),
    Goal("MLP, over the HF Trainer, same features", "mlp", ON, "HF Trainer +features", RATE, "at least", 2.0),
    Goal("MLP, over Lightning, same features", "mlp", ON, "Lightning +features", RATE, "at least", 3.5),
    Goal(
        "MLP on two processes, all features on, over hand-written DDP",
        "mlp2",
        ON,
        "DDP loop",
        RATE,
        "at least",
        1.1,
    ),
    Goal("MLP on two processes, over Lightning", "mlp2", ON, "Lightning +features", RATE, "at least", 1.7),
    Goal("MLP on two processes, over the HF Trainer", "mlp2", ON, "HF Trainer +features", RATE, "at least", 1.7),
    Goal("CNN, same numerics, over the sliced loop", "cnn", "launcher", "sliced loop", RATE, "at least", 0.99),
    Goal(
        "CNN, same numerics, over the DataLoader loop",
        "cnn",
        "launcher",
        "DataLoader loop",
        RATE,
        "at least",
        0.99,
    ),
    Goal(
        "CNN, recipe, over hand-written float32",
        "cnn",
        "launcher recipe",
        "DataLoader loop",
        RATE,
        "at least",
        2.0,
    ),
    Goal(
        *("CNN, recipe, test accuracy minus that of float32", "cnn", "launcher recipe", "DataLoader loop"),
        *("test_accuracy", "no less than", 0.0),
    ),
    Goal(
        "Command to step 51, W&B offline, over hand-written",
        "mlp",
        ON,
        "DataLoader loop",
        START,
        "at most",
        1.1,
    ),
    Goal("Peak memory, over hand-written", "mlp", ON, "DataLoader loop", MEMORY, "at most", 1.05),
    Goal(
        "JPEG folder, over a tuned DataLoader",
        "images",
        "launcher",
        "ImageFolder",
        "samples_per_second",
        "at least",
        1,
    ),
    Goal("launcher -h", "commands", "launcher -h", None, "seconds", "at most", 1.5),
    Goal("launcher --cfg job", "commands", "launcher --cfg job", None, "seconds", "at most", 1.5),
    Goal("launcher, an input error", "commands", "launcher, an input error", None, "seconds", "at most", 1.5),
]

COMMANDS = {  # name -> arguments, exit status
    "launcher -h": (["-h"], 0),
    "launcher --cfg job": (["--cfg", "job"], 0),
    "launcher, an input error": (["optimizer.lr=-1"], 2),
}


def order_of(names: Sequence[Any], round_number: int) -> list[Any]:
    """Rotated by one a round, and turned around in every other one."""
    at = round_number % max(len(names), 1)
    rotated = [*names[at:], *names[:at]]
    return rotated[::-1] if round_number % 2 else rotated


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_suite(
    suite: str,
    members: Sequence[Contender],
    steps: int,
    repeats: int,
    options: argparse.Namespace,
    scratch: Path,
) -> list[dict[str, Any]]:
    """Every round of a suite; a contender that fails is left out of that round, with a message."""
    able = []
    for member in members:
        if reason := member.missing():
            say(f"{suite}: {member.name} skipped: {reason}")
        else:
            able.append(member)
    rounds = []
    for number in range(repeats):
        measured: dict[str, Any] = {}
        for member in order_of(able, number):
            place = scratch / suite / f"{number}-{member.name.replace(' ', '_')}"
            try:
                measured[member.name] = contenders.run(
                    member, steps, number, place, options.data, options.threads, options.timeout
                )
            except RunFailed as failure:
                say(f"{suite}: {member.name} failed in round {number}: {failure}")
                continue
            figures = measured[member.name]
            say(
                f"{suite} round {number + 1}/{repeats}: {member.name}: {figures[RATE]:.0f} steps/s, "
                f"step 51 after {figures[START]:.1f} s, {figures[MEMORY]:.0f} MB"
            )
            shutil.rmtree(place)
        rounds.append({member.name: measured[member.name] for member in able if member.name in measured})
    return rounds


def run_images(repeats: int, options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """ImageFolder with the worker count that proves fastest, and the launcher, on the same JPEG images."""
    if reason := Contender("ImageFolder", "image_folder.py", "", needs=("torchvision", "PIL")).missing():
        say(f"images: skipped: {reason}")
        return []
    folder, place = scratch / "jpeg", scratch / "images"
    say(f"images: making {options.images} JPEG images")
    script = str(contenders.BENCHMARKS / "images.py")  # a process of its own, for the memory that it takes
    for seed, (part, count) in enumerate({"train": options.images, "validation": 64, "test": 64}.items()):
        maker = [sys.executable, script, str(folder / part), "--count", str(count), "--seed", str(seed)]
        subprocess.run(maker, check=True)

    def peer(workers: int, seed: int) -> dict[str, Any]:
        report = place / "report.json"
        command = [
            *(
                sys.executable,
                str(contenders.BENCHMARKS / "peers" / "image_folder.py"),
                str(folder / "train"),
            ),
            *("--workers", str(workers), "--seed", str(seed), "--threads", str(options.threads)),
            *("--batch", str(contenders.BATCH), "--report", str(report)),
        ]
        _, seconds, memory = contenders.execute(
            command, scratch, options.threads, place / "printed.txt", options.timeout, terminal=False
        )
        return json.loads(report.read_text()) | {"command_seconds": seconds, "peak_memory_mb": memory}

    counts = sorted({0, 1, 2, os.cpu_count() or 1})
    tried = {workers: round(peer(workers, 0)["samples_per_second"]) for workers in counts}
    workers = max(tried, key=lambda count: tried[count])
    say(f"images: ImageFolder, images/s by number of workers: {tried}; taken: {workers}")

    rounds: list[dict[str, Any]] = []
    for number in range(repeats):
        measured: dict[str, Any] = {}
        for name in order_of(["launcher", "ImageFolder"], number):
            if name == "ImageFolder":
                measured[name] = peer(workers, number)
            elif reason := Contender(name, None, "").missing():
                say(f"images: launcher skipped: {reason}")
                continue
            else:
                try:
                    measured[name] = launcher_on_images(folder, number, place / f"run-{number}", options)
                except RunFailed as failure:
                    say(f"images: launcher failed in round {number}: {failure}")
                    continue
            rate = measured[name]["samples_per_second"]
            say(f"images round {number + 1}/{repeats}: {name}: {rate:.0f} images/s")
        rounds.append(measured)
    return rounds


def launcher_on_images(folder: Path, seed: int, run_dir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Two epochs of the launcher over the folder, measured from step 5 as the peer is."""
    warm, steps = 5, 2 * (options.images // contenders.BATCH)
    command = [
        *(sys.executable, "launcher/train.py", *contenders.IMAGE_FOLDER, f"data.root={folder}"),
        *(
            f"max_steps={steps}",
            "epochs=100",
            f"seed={seed}",
            f"threads={options.threads}",
            f"log_every={warm}",
        ),
        f"hydra.run.dir={run_dir}",
    ]
    log = run_dir.parent / "printed.txt"
    started, seconds, memory = contenders.execute(
        command, contenders.REPOSITORY, options.threads, log, options.timeout, terminal=False
    )
    measured = contenders.read_launcher(run_dir, started, steps, warm)
    return measured | {
        "samples_per_second": measured[RATE] * contenders.BATCH,
        "command_seconds": seconds,
        "peak_memory_mb": memory,
    }


def run_commands(repeats: int) -> list[dict[str, Any]]:
    """Seconds that the commands take which train nothing."""
    if reason := Contender("launcher", None, "").missing():
        say(f"commands: skipped: {reason}")
        return []
    rounds = []
    for number in range(repeats):
        measured = {}
        for name in order_of(list(COMMANDS), number):
            arguments, expected = COMMANDS[name]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "launcher/train.py", *arguments],
                cwd=contenders.REPOSITORY, capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            if done.returncode != expected:
                say(f"commands: {name} ended with {done.returncode}, not {expected}: {done.stderr[-500:]}")
                continue
            measured[name] = {"seconds": seconds}
        rounds.append(measured)
    return rounds


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures hold for."""
    packages = (
        *("torch", "torchvision", "accelerate", "lightning", "transformers", "wandb"),
        *("hydra-core", "numpy", "torchmetrics", "rich"),
    )
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SUITES), help=f"suites, of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--contenders", help="these alone, by name and separated by commas (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of every suite (default: 5)")
    parser.add_argument("--steps", type=int, default=6_000, help="updates of a run on one process (default: 6000)")
    parser.add_argument("--steps2", type=int, default=2_500, help="updates on two processes (default: 2500)")
    parser.add_argument("--cnn-steps", type=int, default=600, help="updates of the CNN (default: 600)")
    parser.add_argument("--images", type=int, default=2_048, help="JPEG images to make (default: 2048)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a process (default: 1)")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="where the results go")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one run may take (default: 900)")
    parser.add_argument("--quick", action="store_true", help="two rounds of a few steps: whether it all runs")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.steps, options.steps2, options.cnn_steps, options.images = (
            2,
            300,
            200,
            120,
            640,
        )
    if unknown := set(options.only.split(",")) - set(SUITES):
        parser.error(f"--only: no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    return options


def main() -> None:
    options = parse()
    chosen = options.only.split(",")
    if options.contenders is not None:
        wanted = options.contenders.split(",")
        for suite, (title, contestants) in SUITES.items():
            SUITES[suite] = title, [one for one in contestants if one.name in wanted]
    facts = machine()
    facts |= {"threads": options.threads, "steps": options.steps, "cnn_steps": options.cnn_steps}
    rounds: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="launcher-benchmark-") as scratch:
        for suite in chosen:
            if suite == "images":
                rounds[suite] = run_images(options.repeats, options, Path(scratch))
            elif suite == "commands":
                rounds[suite] = run_commands(options.repeats)
            else:
                steps = {"mlp": options.steps, "mlp2": options.steps2, "cnn": options.cnn_steps}[suite]
                rounds[suite] = run_suite(suite, SUITES[suite][1], steps, options.repeats, options, Path(scratch))
    verdicts = judge_all(GOALS, rounds)
    headline = (
        f"{facts['cpu']}, {facts['cores']} cores, {options.threads} thread(s) a process, "
        f"torch {facts['versions']['torch']}; {options.repeats} rounds"
    )
    print(f"\n{headline}\n\n{format_goals(verdicts)}")
    for suite in chosen:
        if any(rounds[suite]):
            print(f"\n{SUITES[suite][0]}: median (lowest to highest)\n\n{format_suite(rounds[suite])}")
    options.out.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": facts,
        "goals": [
            {**vars(v.goal), "value": v.value, "low": v.low, "high": v.high, "rounds": v.rounds, "met": v.met}
            for v in verdicts
        ],
        "medians": {
            suite: {
                name: {
                    measure: statistics.median(values)
                    for measure in (
                        RATE,
                        START,
                        MEMORY,
                        "samples_per_second",
                        "data_wait",
                        "seconds",
                        "test_accuracy",
                    )
                    if (values := [r[name][measure] for r in done if r.get(name, {}).get(measure) is not None])
                }
                for name in dict.fromkeys(name for r in done for name in r)
            }
            for suite, done in rounds.items()
        },
        "rounds": rounds,
    }
    (options.out / "compare.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(rounds, {suite: title for suite, (title, _) in SUITES.items()}, headline, options.out / "compare.png")
    say(f"\nwritten: {options.out / 'compare.json'}, {options.out / 'compare.png'}")


if __name__ == "__main__":
    main()
