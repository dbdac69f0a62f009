"""check=true: what a run will need, and whether it can begin; found out in seconds, with nothing left behind.

The time of a step is that of real ones: a process of its own trains for some seconds on one device, with the share of
the global batch that each device will have.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from launcher.config.composed import Composed, publish
from launcher.config.places import check_writable
from launcher.config.tree import directory_override
from launcher.core.files import read_json
from launcher.core.processes import cores
from launcher.distributed.devices import choose_device
from launcher.distributed.ranks import Ranks, join

if TYPE_CHECKING:
    from launcher.batching.plan import BatchPlan
    from launcher.build import Parts
    from launcher.data.source import Data
    from launcher.run.earlier_run import Found
    from launcher.training.memory import Need

SECONDS = 5.0  # of real steps, at least
WINDOW = 5  # of them that one measurement takes
SPARE = 1.15  # of what is counted, for what an allocator holds beside it
PATIENCE = 600.0  # seconds until a process that should take those steps counts as hung
MB = 2**20


@dataclass
class Findings:
    """What is known of a run before it begins."""

    path: Path  # its directory
    built: "Parts"  # the model on fake tensors
    earlier: "Found"  # in the directory
    need: "Need"  # memory of a device
    free: int  # bytes of it that are free; for each process, where several share it
    copies: int  # bytes that a save writes beside the training
    taken: dict[str, Any] = field(default_factory=dict)  # what steps_taken found, where any were

    @property
    def whole(self) -> int:
        """Bytes that a device needs where no state is sharded."""
        return self.need.peak or self.need.state


def check(composed: Composed) -> int:
    """Say what a run will be and need, on rank 0 alone; exit status 1 where it could not go through, else 0."""
    settings = composed.used()
    ranks = join()
    if ranks.rank != 0:
        return 0
    on_cpu = choose_device(settings, ranks)
    path = Path(str(composed.hydra.run.dir)).resolve()
    publish(composed.hydra, path)
    check_writable(path)

    found, silence = _look(composed, settings, ranks, on_cpu, path)
    if found is None:
        print(f"PROBLEM     the device does not answer: {silence}")
        return 1
    problems = _memory_problems(found, settings)
    if found.whole <= found.free or settings.batch.max_per_device == "auto":
        found.taken = steps_taken(composed, found.built.plan, len(found.built.data.validation), on_cpu)
    if "failure" in found.taken:
        problems.append(f"a step fails:\n{found.taken['failure']}")
    lines = [*_lines(found), *_memory_lines(found, settings)]
    if "steps_per_second" in found.taken:
        lines += time_needed(settings, found.built, found.taken, "CPU process" if on_cpu else "GPU")
    elif not problems:
        lines.append(("time", "not tried: the whole model, which one device would have to hold for it, does not fit"))
    if "checkpoint_bytes" in found.taken and settings.checkpoint.every is not None:
        existing = next(place for place in (path, *path.parents) if place.is_dir())
        each, free = found.taken["checkpoint_bytes"], shutil.disk_usage(existing).free
        count = settings.checkpoint.keep + 2  # the best, and one being written
        lines.append(("disk", f"{count} checkpoints of {each / MB:,.1f} MB, {free / MB:,.0f} MB free"))
        if count * each > free:
            problems.append(f"{existing}: {count * each / MB:,.0f} MB for checkpoints, and {free / MB:,.0f} are free.")
    for name, text in lines:
        print(f"{name:<11} {text}")
    for problem in problems:
        print(f"PROBLEM     {problem}")
    if not problems:
        print("fine        nothing was written; leave out check to run it")
    return int(bool(problems))


def memory_share(settings: Any, hydra: Any, overrides: list[str], world: int) -> float:
    """The share of a GPU that a trial needs, of which it has `world`; 1 where that cannot be told before it runs.

    The first three as for `trial.train_composed`. It starts the driver: for a process that ends.
    """
    import torch

    from launcher.config.composed import hydra_node
    from launcher.distributed.devices import CONTEXT

    if not torch.cuda.is_available():
        return 1.0
    settings = OmegaConf.create({**settings, "check": world})
    composed = Composed(settings, hydra_node(OmegaConf.create(hydra)), overrides)
    need = _count(composed, settings, join(), False)[1]
    total = torch.cuda.mem_get_info(0)[1]
    return 1.0 if need.peak is None else (SPARE * need.peak + CONTEXT) / total


def _look(composed: Composed, settings: Any, ranks: Ranks, on_cpu: bool, path: Path) -> tuple[Findings | None, str]:
    """Build what train.py builds, the model with fake tensors, which have no memory; and count.

    Returns:
        None where the device does not tell how much memory is free; and why.
    """
    from launcher.run.earlier_run import Found, look_into

    built, need = _count(composed, settings, ranks, on_cpu)
    earlier = look_into(path, composed, built) if composed.chose_directory else Found()
    free, silence = free_memory(on_cpu)
    if free is None:
        return None, silence
    here = _devices_here(ranks, on_cpu)
    copies = need.saved if on_cpu and settings.checkpoint.every is not None else 0  # written beside the training
    free = free // (here if on_cpu else 1) - copies
    return Findings(path, built, earlier, need, free, copies), ""


def _devices_here(ranks: Ranks, on_cpu: bool) -> int:
    """Devices that a run on this machine would have: one for each process, or all GPUs of a command alone."""
    import torch

    return ranks.world_size if ranks.world_size > 1 else 1 if on_cpu else torch.cuda.device_count()


def _count(composed: Composed, settings: Any, ranks: Ranks, on_cpu: bool) -> tuple["Parts", "Need"]:
    """Build what train.py builds, the model with fake tensors, and count the memory of a device."""
    import torch

    from launcher import build
    from launcher.batching.stream import in_order
    from launcher.run import run_directory, saved
    from launcher.training import memory

    here = _devices_here(ranks, on_cpu)
    devices = here if settings.check is True else int(settings.check)
    fake = memory.FakeTensorMode(allow_non_fake_inputs=True)
    resumed = run_directory.holds_checkpoint(composed)
    built = build.build(
        settings, ranks, devices, resumed, lambda make: memory.fake_model(make, fake), tried=False,
        kept=run_directory.kept_facts(composed),
    )  # fmt: skip
    data, plan = built.data, built.plan
    with saved.reading():
        sample = next(in_order(data.train, 0, len(data.train), 1, torch.device("cpu"), 0))
    work = memory.Workload(
        plan.micro_size, plan.accumulation_steps > 1, settings.ema_decay is not None, settings.mixed_precision,
        settings.channels_last, on_cpu, plan.evaluation_size(data.tokens) // plan.micro_size,
    )  # fmt: skip
    return built, memory.count_need(built.model, built.learner.task, built.learner.optimizer, fake, sample, work)


def _memory_problems(found: Findings, settings: Any) -> list[str]:
    """Why the run cannot begin, in words: the directory is taken, or the memory does not suffice."""
    from launcher.run.lock import is_held

    need, free, sharded = found.need, found.free, settings.strategy.name != "ddp"
    state = need.state // found.built.plan.world_size if sharded else need.state
    share = found.whole - need.state + state
    problems = [f"hydra.run.dir={found.path}: a run is in it."] if is_held(found.path) else []
    if state > free:
        problems.append(
            f"a device needs {state / MB:,.0f} MB for the model's state alone, and {free / MB:,.0f} are free."
        )
    elif share > free and settings.batch.max_per_device != "auto":
        problems.append(
            f"a device needs {share / MB:,.0f} MB for {found.built.plan.micro_size} samples at once, and "
            f"{free / MB:,.0f} are free. Use batch.max_per_device={max(1, need.fits(free) or 1)}; the result stays the "
            "same."
        )
    return problems


def _lines(found: Findings) -> list[tuple[str, str]]:
    """What the run is made of."""
    built, steps = found.built, found.built.total_steps
    parameters = sum(parameter.numel() for parameter in built.model.parameters())
    return [
        ("directory", f"{found.path}{', resumed' if found.earlier.resumed else ''}"),
        *(("", note) for note in found.earlier.notes),
        ("data", str(built.data)),
        *(("note", note) for note in built.data.notes),
        ("model", f"{type(built.model).__name__}, {parameters:,} parameters"),
        *((line[:11].strip(), line[11:]) for line in built.begun),
        ("batch", str(built.plan)),
        ("length", f"{steps:,} updates, {steps / built.plan.steps_per_epoch:g} epochs"),
    ]


def _memory_lines(found: Findings, settings: Any) -> list[tuple[str, str]]:
    """What a device has to hold."""
    need, plan, tokens = found.need, found.built.plan, found.built.data.tokens
    states = f"{need.states / MB:,.1f}" if need.states is not None else "not known"
    text = f"of a device: weights {need.weights / MB:,.1f} MB, gradients {need.gradients / MB:,.1f}, optimizer {states}"
    text += f", moving average {need.average / MB:,.1f}" if need.average else ""
    text += "" if settings.strategy.name == "ddp" else f", before {settings.strategy.name} shards them"
    text += f"; the copy that a save writes {found.copies / MB:,.1f}" if found.copies else ""
    lines = [("memory", text)]
    if need.peak is not None:
        most = f"{plan.micro_size} samples in a step, {plan.evaluation_size(tokens)} in an evaluation"
        lines.append(("", f"{(need.peak + found.copies) / MB:,.1f} MB at most, activations included ({most})"))
        if (fits := need.fits(found.free)) is not None:
            lines.append(("", f"{fits:,} samples at once would fit into the {found.free / MB:,.0f} MB that are free"))
    if "peak_memory_mb" in found.taken:
        peak = found.taken["peak_memory_mb"]
        lines.append(("", f"{peak:,.0f} MB at most in the steps that were tried, all in all"))
    return lines


def free_memory(on_cpu: bool) -> tuple[int | None, str]:
    """Bytes that are free on the device, asked by a process that ends.

    The one that asks CUDA keeps a context, some 500 MB, for as long as it lives: the steps that are tried after it
    would have so much less, and no GPU at all where it takes one process only (compute mode EXCLUSIVE_PROCESS).

    Returns:
        None where it does not answer; and why.
    """
    question = "import psutil; print(psutil.virtual_memory().available)"
    if not on_cpu:
        question = "import torch; print(torch.cuda.mem_get_info(0)[0])"
    asked = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, errors="replace")
    if asked.returncode == 0:
        return int(asked.stdout.split()[-1]), ""
    return None, [f"exit status {asked.returncode}", *asked.stderr.strip().splitlines()][-1]


def excerpt(source: "Data", samples: int) -> "Data":
    """A data source with no more than so many samples to validate on; a data source's `_target_` itself."""
    import torch

    return replace(source, validation=source.validation.at(torch.arange(samples)))


def steps_taken(composed: Composed, plan: "BatchPlan", validation: int, on_cpu: bool) -> dict[str, Any]:
    """Train for some seconds on one device, in a process and a directory that are gone afterwards.

    Ten updates at least, then an evaluation of `validation` samples at most, and so on. Of each ten the last five
    count: while an evaluation runs, the processes that load data get ahead.

    Returns:
        `steps_per_second`, `step`, `around` (seconds before the first update and after the last), `evaluation` (seconds
        per sample), `peak_memory_mb` and `checkpoint_bytes`; or `failure`, the end of what it said.
    """
    samples = min(16 * plan.micro_size, validation)
    settings = _settings_of_steps(composed.plain(), plan, samples, on_cpu)
    own = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_")
    alone = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    with tempfile.TemporaryDirectory(prefix="launcher-check-") as place:
        run = Path(place, "run")
        hydra: Any = OmegaConf.to_container(composed.hydra, enum_to_str=True)
        hydra["run"]["dir"] = str(run)
        task = {"settings": settings, "hydra": hydra, "overrides": [directory_override(run)]}
        Path(place, "task.json").write_text(json.dumps(task))
        command = [sys.executable, str(Path(__file__).with_name("trial.py")), "--task", f"{place}/task.json"]
        said, begun = Path(place, "said"), time.time()
        with said.open("wb") as file:
            process = subprocess.Popen(command, env=alone, stdout=file, stderr=subprocess.STDOUT)
        try:
            timings, end = run / "timings.jsonl", time.monotonic() + PATIENCE
            while process.poll() is None and not (timings.is_file() and timings.read_bytes().count(b"\n") >= 2):
                if time.monotonic() > end:
                    return {"failure": f"{2 * WINDOW} updates were not done within {PATIENCE:g} s"}
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            stopped = time.monotonic()
            process.terminate()  # it saves what it has and draws its curves, as a run that ends
            process.wait(PATIENCE)
            ending = time.monotonic() - stopped
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            return {"failure": "\n".join(said.read_text(errors="replace").strip().splitlines()[-15:])}
        found = read_json(run / "summary.json")
        first, *rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
        steady = [row for row in rows if row["evaluating"]]
        steady = steady[1:] or steady  # the first evaluation takes its time to get going
        seconds = sum(WINDOW / row["steps_per_second"] for row in steady) / len(steady) / WINDOW
        return {
            "steps_per_second": 1 / seconds, "around": max(0.0, first["time"] - begun - WINDOW * seconds) + ending,
            "evaluation": sum(row["evaluating"] for row in steady) / len(steady) / samples,
            "checkpoint_bytes": sum(file.stat().st_size for file in run.glob("checkpoints/step_*/*")),
            "step": found["step"], "peak_memory_mb": found["peak_memory_mb"],
        }  # fmt: skip


def _settings_of_steps(settings: dict[str, Any], plan: "BatchPlan", samples: int, on_cpu: bool) -> dict[str, Any]:
    """The settings of a run, for one device alone that trains until it is stopped and saves nothing."""
    settings |= {
        "check": False, "profile": False, "eval_every": 2 * WINDOW, "log_every": WINDOW, "max_steps": None,
        "epochs": sys.maxsize // plan.samples, "max_time": None, "trackers": [], "hooks": [],
        "canonical_shards": max(1, settings["canonical_shards"] // plan.world_size),
        "data": {"_target_": "launcher.check.excerpt", "source": settings["data"], "samples": samples},
    }  # fmt: skip
    if on_cpu and settings["threads"] == "auto":
        settings["threads"] = max(1, len(cores()) // plan.world_size)
    settings["batch"] |= {"global_size": plan.per_device_size, "lr_scaling": "none"}
    settings["checkpoint"] |= {"every": None, "best": None}
    settings["early_stopping"] |= {"metric": None}
    settings["wandb"]["mode"] = "disabled"
    # A schedule of its own length, or that waits for evaluations: its updates cost what these cost.
    settings["scheduler"] = {
        "_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0, "total_iters": 1, "interval": "step",
    }  # fmt: skip
    return settings


def time_needed(settings: Any, built: "Parts", taken: Mapping[str, Any], device: str) -> list[tuple[str, str]]:
    """The lines on the time of a run, from what `steps_taken` found on one device."""
    data, plan, total_steps = built.data, built.plan, built.total_steps
    training = total_steps / taken["steps_per_second"]
    every = plan.steps_per_epoch if settings.eval_every == "epoch" else settings.eval_every
    count = 0 if every is None else -(-total_steps // every)
    samples = count * len(data.validation) + (1 + settings.test_time_flip) * len(data.test)
    evaluating = samples * taken["evaluation"] / plan.world_size
    around = taken["around"]
    return [
        ("time", f"{_duration(around + training + evaluating)}: {_duration(around)} to begin and end, "
         f"{_duration(training)} of training, {_duration(evaluating)} of {count + 1} evaluations"),
        ("", f"{taken['steps_per_second']:.3g} updates/s in {taken['step']} real ones of {plan.per_device_size} "
         f"samples on one {device}; saves and what the devices tell each other come on top"),
    ]  # fmt: skip


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
