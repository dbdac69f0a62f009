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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from launcher import config, distributed
from launcher.config import Composed

if TYPE_CHECKING:
    from torch import nn

    from launcher.batch import BatchPlan

SECONDS = 2.0  # of real steps
PATIENCE = 600.0  # seconds until a process that should take those steps counts as hung
MB = 2**20


def check(composed: Composed) -> int:
    """Say what a run will be and need; on rank 0 alone.

    Args:
        composed: The checked config.

    Returns:
        0, or 1 where the run could not go through: too little memory or disk, or a step that fails.
    """
    settings = composed.settings
    distributed.join_slurm()
    ranks = distributed.find_ranks(os.environ, distributed.parent_command())
    if ranks.rank != 0:
        return 0
    on_cpu = distributed.choose_device(settings.device, settings.mixed_precision, ranks)

    import shutil

    import psutil
    import torch

    from launcher import batch, engine, losses, run_directory, schedulers, stream
    from launcher.components import build_data

    here = ranks.world_size if ranks.world_size > 1 else 1 if on_cpu else torch.cuda.device_count()
    devices = here if settings.check is True else int(settings.check)
    path = Path(str(composed.hydra.run.dir)).resolve()
    config.check_writable(path)
    resumes = composed.chose_directory and (path / run_directory.CONFIG).is_file()
    if resumes:
        run_directory.check_same(path, composed)

    stream.seed_generators(settings.seed)
    data = build_data(settings.data)
    shards = settings.canonical_shards if settings.exact_across_devices else None
    size, most = settings.batch.global_size, settings.batch.max_per_device
    plan = batch.plan_batch(len(data.train), size, devices, most, shards)
    model = build_on_meta(settings.model, data.facts())
    losses.build_loss(settings.loss, data)
    optimizer, states = optimizer_of(settings, model)
    total_steps = min(settings.epochs * plan.steps_per_epoch, settings.max_steps or sys.maxsize)
    schedule = schedulers.build_schedule(settings.scheduler, optimizer, total_steps, plan.steps_per_epoch)
    wanted = {"checkpoint.best": settings.checkpoint.best, "scheduler.metric": schedule.metric}
    engine.check_figures(data, settings.metrics, wanted if settings.eval_every is not None else {})

    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    gradients = sum(tensor.nbytes for tensor in model.parameters() if tensor.requires_grad)
    average = weights if settings.ema_decay is not None else 0
    needed = weights + gradients + (states or 0) + average
    there = psutil.virtual_memory().available if on_cpu else torch.cuda.mem_get_info()[0]
    problems = []
    if run_directory.is_held(path):
        problems.append(f"hydra.run.dir={path}: a run is in it.")
    share = needed / (1 if settings.strategy.name == "ddp" else devices)
    if share > there:
        problems.append(
            f"a device needs {share / MB:,.0f} MB for the model's state alone, and {there / MB:,.0f} are free."
        )
    taken = steps_taken(composed, plan, devices) if needed <= there else {}
    if "failure" in taken:
        problems.append(f"a step fails:\n{taken['failure']}")

    lines = [
        ("directory", f"{path}{', resumed' if resumes else ''}"),
        ("data", str(data)),
        ("model", f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters"),
        ("batch", str(plan)),
        ("length", f"{total_steps:,} updates, {total_steps / plan.steps_per_epoch:g} epochs"),
        ("memory", f"of a device: weights {weights / MB:,.1f} MB, gradients {gradients / MB:,.1f}, optimizer "
         + (f"{states / MB:,.1f}" if states is not None else "not known")
         + (f", moving average {average / MB:,.1f}" if average else "")
         + ("" if settings.strategy.name == "ddp" else f", before {settings.strategy.name} shards them")
         + "; activations come on top"),
    ]  # fmt: skip
    if "peak_memory_mb" in taken:
        lines.append(("", f"{taken['peak_memory_mb']:,.0f} MB at most in the steps that were tried, all in all"))
    if "steps_per_second" in taken:
        rate = taken["steps_per_second"]
        steps = f"{taken['step']} real ones of {plan.per_device_size} samples"
        where = "on one CPU process" if on_cpu else "on one GPU"
        lines.append(("time", f"{_duration(total_steps / rate)} of training: {rate:.3g} updates/s in {steps} {where}"))
        lines.append(("", "evaluations, saves and what the devices tell each other come on top"))
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


def build_on_meta(settings: Any, facts: dict[str, Any]) -> "nn.Module":
    """The model without memory for its weights; in memory where its constructor needs their values."""
    import torch

    from launcher.components import build

    try:
        with torch.device("meta"):
            model: nn.Module = build("model", settings, **facts)
            return model
    except (NotImplementedError, RuntimeError):
        model = build("model", settings, **facts)
        return model


def optimizer_of(settings: Any, model: "nn.Module") -> "tuple[Any, int | None]":
    """The optimizer of a model and the bytes of its states after a step; None where it cannot do one without memory."""
    import torch

    from launcher import optimizers

    optimizer = optimizers.build_optimizer(settings.optimizer, model, 1.0, settings.decay_bias_and_norm)
    for group in optimizer.param_groups:
        if group.get("fused"):  # no kernel of that kind works without memory; the states are the same
            group["fused"] = False
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError):
        return optimizer, None
    finally:
        optimizer.zero_grad(set_to_none=True)
    found = [value for state in optimizer.state.values() for value in state.values()]
    return optimizer, sum(value.nbytes for value in found if isinstance(value, torch.Tensor))


def steps_taken(composed: Composed, plan: "BatchPlan", devices: int) -> dict[str, Any]:
    """Train for some seconds on one device, in a process and a directory that are gone afterwards.

    Args:
        composed: The checked config.
        plan: Of the run.
        devices: Of the run.

    Returns:
        `steps_per_second`, `step`, `peak_memory_mb` and `checkpoint_bytes`; or `failure`, the end of what it said.
    """
    settings = composed.plain()
    settings |= {
        "check": False, "profile": False, "eval_every": None, "log_every": 1, "epochs": sys.maxsize // plan.samples,
        "max_steps": None, "max_time": None, "canonical_shards": max(1, settings["canonical_shards"] // devices),
    }  # fmt: skip
    settings["batch"] |= {"global_size": plan.per_device_size, "lr_scaling": "none"}
    settings["checkpoint"] |= {"every": None, "best": None}
    settings["wandb"]["mode"] = "disabled"
    # A schedule of its own length, or that waits for evaluations: its updates cost what these cost.
    settings["scheduler"] = {
        "_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0, "total_iters": 1, "interval": "step",
    }  # fmt: skip
    own = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_")
    alone = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    with tempfile.TemporaryDirectory(prefix="launcher-check-") as place:
        run = Path(place, "run")
        hydra: Any = OmegaConf.to_container(OmegaConf.create({"hydra": composed.hydra}))
        hydra["hydra"]["run"]["dir"] = str(run)
        task = {"settings": settings, "hydra": hydra["hydra"], "overrides": [config.directory_override(run)],
                "trees": {}, "commit": None}  # fmt: skip
        Path(place, "task.json").write_text(json.dumps(task))
        command = [sys.executable, str(Path(__file__).with_name("point.py")), "--task", f"{place}/task.json"]
        said = Path(place, "said")
        with said.open("wb") as file:
            process = subprocess.Popen(command, env=alone, stdout=file, stderr=subprocess.STDOUT)
        try:
            timings, end = run / "timings.jsonl", time.monotonic() + PATIENCE
            while process.poll() is None and not (timings.is_file() and timings.stat().st_size):
                if time.monotonic() > end:
                    return {"failure": f"no step was done within {PATIENCE:g} s"}
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            process.terminate()  # it saves what it has, as a run that is stopped
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            return {"failure": "\n".join(said.read_text(errors="replace").strip().splitlines()[-15:])}
        found = json.loads((run / "summary.json").read_text())
        rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
        steady = rows[len(rows) // 2 :] or [found]  # the first ones take their time to get going
        rate = sorted(row["steps_per_second"] for row in steady)[len(steady) // 2]
        size = sum(file.stat().st_size for file in run.glob("checkpoints/*/*"))
        return {"steps_per_second": rate, "checkpoint_bytes": size, **{k: found[k] for k in ("step", "peak_memory_mb")}}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
