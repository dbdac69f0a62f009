"""One training run, from the command line to the report. Read it from top to bottom.

    accelerate launch launcher/train.py optimizer=sgd
    python launcher/train.py -m optimizer=sgd,adam

Nothing heavy is imported at the top: help and wrong settings are answered before torch is loaded.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started as a file; launcher/__init__.py then puts the path in order
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launcher import check
from launcher.config import composition
from launcher.config.command_line import parse_arguments
from launcher.config.composed import Composed, publish
from launcher.config.composition import show
from launcher.config.rules import parse_duration
from launcher.distributed import process_group
from launcher.distributed.watch import Watch, by_rank_0, finish, guarded
from launcher.run import logs, run_directory

log = logging.getLogger("launcher")


def main() -> None:
    """The console command: exit status 0 when finished or stopped on request, 2 for wrong input, 1 for a failure."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Do what a command line asks for: show something, start a sweep (-m), or train."""
    arguments = parse_arguments(argv)
    if show(arguments, "train"):
        return 0
    with composition.opened(arguments, "train") as (hydra, name):
        composed = composition.compose_run(hydra, name, arguments)
        if composed is None:
            if not process_group.conducts(process_group.join()):
                return 0
            return composition.sweep(hydra, name, arguments.overrides)
    return train(composed)


def train(composed: Composed, after_row: Callable[[Path, int, Mapping[str, float]], None] | None = None) -> int:
    """The story of one run.

    Args:
        composed: The checked config; nobody below gets to see all of it.
        after_row: Called on every rank with the run directory and each row of the record; what it raises ends the run.

    Returns:
        Exit status.
    """
    settings = composed.settings
    os.environ.update(composed.hydra.job.env_set)
    if settings.check:
        return check.check(composed)

    # 1. Which rank am I, and on what kind of device
    ranks = process_group.join()
    on_cpu = process_group.choose_device(settings.device, settings.mixed_precision, ranks)
    process_group.compare_devices(settings.device, ranks, on_cpu, settings.timeout)
    process_group.choose_workspace(os.environ, settings.deterministic, on_cpu)
    process_group.check_compression(settings.strategy, ranks)

    messages = logs.Log(composed, ranks.rank)

    # 2. Build everything on the CPU: what is wrong ends here, before a device or a directory is touched
    from launcher.build import build
    from launcher.training import sharded

    with run_directory.settled(composed, ranks) as composed:
        settings = composed.used()
        resumed = run_directory.holds_checkpoint(composed)
        build_model = partial(sharded.build_model, settings.strategy, ranks)
        parts = build(settings, ranks, ranks.world_size, resumed, build_model)
    data, plan, model, loss, total_steps = parts.data, parts.plan, parts.model, parts.loss, parts.total_steps

    import torch

    from launcher.batching import stream
    from launcher.distributed.stopping import StopRequest
    from launcher.loop import REPORT_SECONDS, Every, Loop
    from launcher.models.mirrored import Mirrored
    from launcher.run import gallery, provenance, reporter
    from launcher.run.tracking import Record
    from launcher.training import checkpoint, divergence, engine, probe
    from launcher.training.clock import Clock, Profiler, useful_threads
    from launcher.training.staging import Staging

    # 3. The run directory, made by rank 0 and told to every rank; then the devices
    directory, path, complete = run_directory.open_for_all(composed, total_steps, parts, ranks)
    useful = partial(useful_threads, model, data.train, plan.micro_size) if on_cpu else lambda: None
    threads = process_group.choose_threads(settings.threads, ranks, useful)
    accelerator = process_group.start(
        ranks, on_cpu, settings.mixed_precision, threads, settings.timeout, settings.deterministic,
        settings.strategy, settings.float32_matmul_precision, settings.device == "shared",
    )  # fmt: skip
    device = accelerator.device
    watch = Watch(ranks, settings.timeout) if ranks.world_size > 1 else None
    data.move_to(device)
    publish(composed.hydra, path)
    if directory is not None:
        messages.begin_file(path)
        log.info("run        %s%s", path, ", resumed" if directory.resumed else "")
        if composed.adopted:
            log.info("adopted    %s, as accelerate launch was asked to", " ".join(composed.adopted))
        log.info("data       %s", data)
        for line in directory.notes:
            log.warning("found      %s", line)
        for note in data.notes:
            log.warning("note       %s", note)
        if not complete:
            for line in provenance.write(path, composed.plain(), data, ranks.world_size, device):
                log.warning("changed    %s", line)
        count = sum(parameter.numel() for parameter in model.parameters())
        log.info("model      %s, %s parameters", type(model).__name__, f"{count:,}")
        for line in parts.begun:
            log.info(line)

    if complete:
        finish(watch)
        if directory is not None:
            reporter.show_again(directory, composed.plain(), list(settings.trackers), settings.wandb)
            log.info("finished already: nothing is left to do in %s", path)
            directory.close()
        return 0

    # 4. Wrap the model, and take up what a run in this directory has done before
    if parts.sharding is None:  # else it goes there block by block
        model.to(device)
    loss.to(device)
    take_up = partial(checkpoint.take_up, path / "checkpoints")
    found = by_rank_0("the checkpoints to be verified", take_up, ranks.world_size)
    rules, every = checkpoint.rules_of(settings), plan.interval(settings.eval_every)
    saved, progress = None, checkpoint.Progress()
    if found is not None:
        saved = checkpoint.resume(found, total_steps, rules, Record(path / "metrics.jsonl"), every, ranks)
        progress = checkpoint.Progress(**saved[1]["progress"])
    trainer = sharded.choose_trainer(parts.sharding, parts.shards)(
        model, loss, parts.optimizer, parts.schedule, accelerator, ranks, settings.seed, settings.clip_grad_norm,
        settings.ema_decay, settings.compile, settings.channels_last,
        divergence.Rollbacks(path / "rollbacks.json", directory is not None),
        settings.clip_grad_value, settings.log_grad_norm,
    )  # fmt: skip
    if settings.batch.max_per_device == "auto":
        find = partial(probe.find_size, trainer, parts, settings.test_time_flip)
        with engine.advice(plan, trainer):
            progress.max_per_device = probe.settle_size(progress.max_per_device, path, ranks, find)
        plan = plan.capped(progress.max_per_device)
    log.info("batch      %s", plan)
    # Until here a signal simply ends the process: nothing is lost. From here on it starts others, that load samples
    stop = StopRequest(parse_duration(settings.max_time), REPORT_SECONDS)
    samples = stream.of_rank(
        data.train, plan, settings.seed, ranks, device, settings.num_workers, parts.balanced, parts.kind
    )
    with engine.advice(plan, trainer):
        trainer.warm_up(samples)
    if saved is not None and found is not None:
        checkpoint.restore(*saved, trainer, ranks)
        saved = None  # whose tensors may be as large as the model and its optimizer once more
        log.info("resume     from %s, at step %d of %d", found.name, progress.step, total_steps)
    saver = keeper = None
    if directory is not None:
        saver = checkpoint.Saver(
            path / "checkpoints", settings.checkpoint.keep, settings.checkpoint.max_failures, Staging.for_device(device)
        )
        keeper = reporter.Reporter(
            directory, progress.step, progress.recorded, total_steps, plan.steps_per_epoch, composed.plain(),
            list(settings.trackers), settings.wandb,
        )  # fmt: skip

    def measure(part: Any, flip: bool = False, settled: bool = False) -> engine.Evaluation | None:
        if not settled:
            trainer.check()
            trainer.settle()
        return engine.evaluate(
            Mirrored(trainer.measured) if flip else trainer.measured, loss, part, parts.outputs, accelerator, ranks,
            plan.evaluation_size(data.tokens), settings.num_workers, settings.metrics, parts.shards, lambda: bool(stop),
            parts.sharding is not None,
        )  # fmt: skip

    # 5. Train
    operations = trainer.operations(samples, settings.float32_matmul_precision)
    loop = Loop(
        trainer=trainer,
        samples=samples,
        plan=plan,
        progress=progress,
        total_steps=total_steps,
        every=Every(
            evaluate=every,
            log=plan.interval(settings.log_every),
            save=plan.interval(settings.checkpoint.every),
            watch=settings.wandb.watch_every if settings.wandb.watch else 0,
        ),
        evaluate=lambda: measure(data.validation),
        rules=rules,
        max_rollbacks=settings.divergence.max_rollbacks if settings.divergence.action == "rollback" else 0,
        clock=Clock(progress.step, device, ranks, trainer.forward, *operations, data.tokens),
        stop=stop,
        profiler=Profiler(path / "trace.json") if settings.profile and ranks.rank == 0 else None,
        checkpoints=path / "checkpoints",
        saver=saver,
        keeper=keeper,
        after_row=after_row and partial(after_row, path),
    )
    with engine.advice(plan, trainer):
        loop.run()

    # 6. The end: everything saved; the test part is measured when the run is complete, by the last model and the best
    progress = loop.progress
    with engine.advice(plan, trainer):
        tested = loop.test(partial(measure, data.test, settings.test_time_flip))
    predictions = None
    if tested and settings.wandb.tables:
        predictions = gallery.columns(
            Mirrored(trainer.measured) if settings.test_time_flip else trainer.measured, data.test, data.input_shape,
            parts.outputs, settings.wandb.tables, plan.evaluation_size(data.tokens), accelerator,
        )  # fmt: skip
    status = "finished" if tested else "stopped"
    # One of them has heard the signal, and one has taken most memory
    told = process_group.at_rank_0((stop.reason, loop.clock.memory.mb()), ranks.world_size, ranks.rank) or []
    if directory is not None and keeper is not None:
        summary = {
            "status": status,
            "step": progress.step,
            "best_step": progress.best_step,
            "epoch": progress.step / plan.steps_per_epoch,
            "samples_seen": plan.samples_seen(progress.step),
            "world_size": ranks.world_size,
            "global_batch_size": plan.global_size,
            "per_device_batch_size": plan.per_device_size,
            "accumulation_steps": plan.accumulation_steps,
            "threads": torch.get_num_threads(),
            **({"reason": progress.ended} if progress.ended else {}),
            **loop.clock.totals(progress.step, plan, [memory for _, memory in told]),
            **provenance.summary(),
        }
        keeper.close(summary, progress, tested, data.class_names, predictions)
        if status == "stopped":
            directory.stopped(progress.step, next((reason for reason, _ in told if reason), None), composed.overrides)
    finish(watch)
    if directory is not None and keeper is not None:  # what may take long: the other ranks have left
        keeper.show()
        if status == "finished":
            log.info("finished   %s%s", f"{progress.ended}; " if progress.ended else "", path / "report.html")
        directory.close()
    return 0


if __name__ == "__main__":
    main()
