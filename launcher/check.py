"""check=true: what a run will need, and whether it can begin; found out in seconds, with nothing left behind.

The time of a step is that of real ones: a process of its own trains for some seconds on one device, with the share of
the global batch that each device will have.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from launcher.config.composed import Composed, publish
from launcher.config.places import check_writable
from launcher.config.tree import directory_override
from launcher.distributed import process_group

if TYPE_CHECKING:
    from launcher.batching.plan import BatchPlan
    from launcher.data.source import Data

SECONDS = 5.0  # of real steps, at least
WINDOW = 5  # of them that one measurement takes
PATIENCE = 600.0  # seconds until a process that should take those steps counts as hung
MB = 2**20


def check(composed: Composed) -> int:
    """Say what a run will be and need; on rank 0 alone.

    Args:
        composed: The checked config.

    Returns:
        0, or 1 where the run could not go through: too little memory or disk, or a step that fails.
    """
    settings = composed.used()
    ranks = process_group.join()
    if ranks.rank != 0:
        return 0
    on_cpu = process_group.choose_device(settings.device, settings.mixed_precision, ranks)

    import shutil

    import torch

    from launcher import build
    from launcher.batching.stream import in_order
    from launcher.losses.loss import build_loss
    from launcher.run import run_directory, saved
    from launcher.training import memory

    here = ranks.world_size if ranks.world_size > 1 else 1 if on_cpu else torch.cuda.device_count()
    devices = here if settings.check is True else int(settings.check)
    path = Path(str(composed.hydra.run.dir)).resolve()
    publish(composed.hydra, path)
    check_writable(path)

    # As train.py builds it, but for the model: of fake tensors, which have no memory.
    fake = memory.FakeTensorMode(allow_non_fake_inputs=True)
    resumed = run_directory.holds_checkpoint(composed)
    built = build.build(settings, ranks, devices, resumed, lambda make: memory.fake_model(make, fake), tried=False)
    data, plan, model, total_steps = built.data, built.plan, built.model, built.total_steps
    found = run_directory.Found()
    if composed.chose_directory:
        found = run_directory.look_into(path, composed, total_steps, built)
    most, parameters = settings.batch.max_per_device, sum(parameter.numel() for parameter in model.parameters())
    loss = build_loss(settings.loss, data)  # without the mixing, which takes targets of its own

    with saved.reading():
        sample = next(in_order(data.train, 0, len(data.train), 1, torch.device("cpu"), 0))
    need = memory.count_need(
        model, loss, built.optimizer, fake, sample, plan.micro_size, plan.accumulation_steps > 1,
        settings.ema_decay is not None, settings.mixed_precision, settings.channels_last, on_cpu,
        plan.evaluation_size(data.tokens) // plan.micro_size,
    )  # fmt: skip
    there, silence = free_memory(on_cpu)
    if there is None:
        print(f"PROBLEM     the device does not answer: {silence}")
        return 1
    there //= here if on_cpu else 1
    copies = need.saved if on_cpu and settings.checkpoint.every is not None else 0  # written beside the training
    there -= copies
    whole = need.peak or need.state
    share = whole - (0 if settings.strategy.name == "ddp" else need.state - need.state // devices)
    problems = []
    if run_directory.is_held(path):
        problems.append(f"hydra.run.dir={path}: a run is in it.")
    if need.state - whole + share > there:
        problems.append(
            f"a device needs {(need.state - whole + share) / MB:,.0f} MB for the model's state alone, and "
            f"{there / MB:,.0f} are free."
        )
    elif share > there and most != "auto":
        problems.append(
            f"a device needs {share / MB:,.0f} MB for {plan.micro_size} samples at once, and {there / MB:,.0f} are "
            f"free. Use batch.max_per_device={max(1, need.fits(there) or 1)}; the result stays the same."
        )
    taken = steps_taken(composed, plan, len(data.validation), on_cpu) if whole <= there or most == "auto" else {}
    if "failure" in taken:
        problems.append(f"a step fails:\n{taken['failure']}")

    sharding = "" if settings.strategy.name == "ddp" else f", before {settings.strategy.name} shards them"
    lines = [
        ("directory", f"{path}{', resumed' if found.resumed else ''}"),
        *(("", note) for note in found.notes),
        ("data", str(data)),
        *(("note", note) for note in data.notes),
        ("model", f"{type(model).__name__}, {parameters:,} parameters"),
        *((line[:11].strip(), line[11:]) for line in built.begun),
        ("batch", str(plan)),
        ("length", f"{total_steps:,} updates, {total_steps / plan.steps_per_epoch:g} epochs"),
        ("memory", f"of a device: weights {need.weights / MB:,.1f} MB, gradients {need.gradients / MB:,.1f}, optimizer "
         + (f"{need.states / MB:,.1f}" if need.states is not None else "not known")
         + (f", moving average {need.average / MB:,.1f}" if need.average else "") + sharding),
    ]  # fmt: skip
    if copies:
        lines[-1] = ("memory", f"{lines[-1][1]}; the copy that a save writes {copies / MB:,.1f}")
    if need.peak is not None:
        most_at_once = f"{plan.micro_size} samples in a step, {plan.evaluation_size(data.tokens)} in an evaluation"
        lines.append(("", f"{(need.peak + copies) / MB:,.1f} MB at most, activations included ({most_at_once})"))
        if (fits := need.fits(there)) is not None:
            lines.append(("", f"{fits:,} samples at once would fit into the {there / MB:,.0f} MB that are free"))
    if "peak_memory_mb" in taken:
        lines.append(("", f"{taken['peak_memory_mb']:,.0f} MB at most in the steps that were tried, all in all"))
    if "steps_per_second" in taken:
        lines += time_needed(settings, data, plan, total_steps, taken, "CPU process" if on_cpu else "GPU")
    elif not problems:
        lines.append(("time", "not tried: the whole model, which one device would have to hold for it, does not fit"))
    existing = next(place for place in (path, *path.parents) if place.is_dir())
    free, each = shutil.disk_usage(existing).free, taken.get("checkpoint_bytes")
    if each is not None and settings.checkpoint.every is not None:
        count = settings.checkpoint.keep + 2  # the best, and the one that is being written
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
    from torch.utils.data import Subset

    from launcher.batching.splits import TensorSplit

    part, count = source.validation, min(samples, len(source.validation))
    if isinstance(part, TensorSplit):
        return replace(source, validation=replace(part, inputs=part.inputs[:count], targets=part.targets[:count]))
    targets = None if part.targets is None else part.targets[:count]
    return replace(source, validation=replace(part, dataset=Subset(part.dataset, range(count)), targets=targets))


def steps_taken(composed: Composed, plan: "BatchPlan", validation: int, on_cpu: bool) -> dict[str, Any]:
    """Train for some seconds on one device, in a process and a directory that are gone afterwards.

    Ten updates at least, then an evaluation, and so on. Of each ten the last five count: while an evaluation runs, the
    processes that load data get ahead.

    Args:
        composed: The checked config.
        plan: Of the run.
        validation: Samples in the validation part.
        on_cpu: Whether these are processes of this machine, which share its cores.

    Returns:
        `steps_per_second`, `step`, `around` (seconds before the first update and after the last), `evaluation` (seconds
        per sample), `peak_memory_mb` and `checkpoint_bytes`; or `failure`, the end of what it said.
    """
    settings, samples = composed.plain(), min(16 * plan.micro_size, validation)
    settings |= {
        "check": False, "profile": False, "eval_every": 2 * WINDOW, "log_every": WINDOW, "max_steps": None,
        "epochs": sys.maxsize // plan.samples, "max_time": None, "trackers": [],
        "canonical_shards": max(1, settings["canonical_shards"] // plan.world_size),
        "data": {"_target_": "launcher.check.excerpt", "source": settings["data"], "samples": samples},
    }  # fmt: skip
    if on_cpu and settings["threads"] == "auto":
        settings["threads"] = max(1, len(os.sched_getaffinity(0)) // plan.world_size)
    settings["batch"] |= {"global_size": plan.per_device_size, "lr_scaling": "none"}
    settings["checkpoint"] |= {"every": None, "best": None}
    settings["early_stopping"] |= {"metric": None}
    settings["wandb"]["mode"] = "disabled"
    # A schedule of its own length, or that waits for evaluations: its updates cost what these cost.
    settings["scheduler"] = {
        "_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0, "total_iters": 1, "interval": "step",
    }  # fmt: skip
    own = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_")
    alone = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    with tempfile.TemporaryDirectory(prefix="launcher-check-") as place:
        run = Path(place, "run")
        hydra: Any = OmegaConf.to_container(OmegaConf.create({"hydra": composed.hydra}), enum_to_str=True)
        hydra["hydra"]["run"]["dir"] = str(run)
        task = {"settings": settings, "hydra": hydra["hydra"], "overrides": [directory_override(run)],
                "trees": {}, "commit": None}  # fmt: skip
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
        found = json.loads((run / "summary.json").read_text())
        first, *rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
        steady = [row for row in rows if row["evaluating"]]
        steady = steady[1:] or steady  # the first evaluation takes its time to get going
        seconds = sum(WINDOW / row["steps_per_second"] for row in steady) / len(steady) / WINDOW
        return {
            "steps_per_second": 1 / seconds, "around": max(0.0, first["time"] - begun - WINDOW * seconds) + ending,
            "evaluation": sum(row["evaluating"] for row in steady) / len(steady) / samples,
            "checkpoint_bytes": sum(file.stat().st_size for file in run.glob("checkpoints/*/*")),
            "step": found["step"], "peak_memory_mb": found["peak_memory_mb"],
        }  # fmt: skip


def time_needed(
    settings: Any, data: "Data", plan: "BatchPlan", total_steps: int, taken: Mapping[str, Any], device: str
) -> list[tuple[str, str]]:
    """The lines on the time of a run, from what `steps_taken` found on one device."""
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
