"""One training run, from the command line to the report. Read it from top to bottom.

    accelerate launch launcher/train.py optimizer=sgd
    python launcher/train.py -m optimizer=sgd,adam

Nothing heavy is imported at the top: help and wrong settings are answered before torch is loaded.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: launcher/ itself stands first on the path and would hide modules
    sys.path[0] = os.getcwd()
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from launcher import check, config, distributed
from launcher.config import Composed
from launcher.errors import ConfigError
from launcher.watch import Watch, finish, guarded

log = logging.getLogger("launcher")

REPORT_SECONDS = 5.0  # what the end of a stopped run takes beside the save: its pictures and page


def main() -> None:
    """The console command: exit status 0 when finished or stopped on request, 2 for wrong input, 1 for a failure."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Do what a command line asks for: show something, start a grid (-m), or train."""
    arguments = config.parse_arguments(argv)
    if config.show(arguments, "train"):
        return 0
    with config.opened(arguments, "train") as (hydra, name):
        if arguments.multirun:
            distributed.join_slurm()
            if os.environ.get("RANK", "0") != "0":
                return 0  # rank 0 conducts the grid and gives each point processes of its own
            return config.sweep(hydra, name, arguments.overrides)
        composed = config.compose(hydra, name, arguments.overrides)
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
    if settings.check:
        return check.check(composed)

    # 1. Which rank am I, and on what kind of device
    distributed.join_slurm()
    ranks = distributed.find_ranks(os.environ, distributed.parent_command())
    on_cpu = distributed.choose_device(settings.device, settings.mixed_precision, ranks)

    # 2. Build everything on the CPU: what is wrong ends here, before a device or a directory is touched
    import torch

    from launcher import (
        batch,
        checkpoint,
        divergence,
        engine,
        finetune,
        losses,
        mixup,
        optimizers,
        provenance,
        reporter,
        run_directory,
        schedulers,
        sharded,
        stream,
    )
    from launcher.clock import Clock, Profiler
    from launcher.components import build, build_data
    from launcher.models.mirrored import Mirrored, check_mirror
    from launcher.recompute import recompute
    from launcher.sampling import Balanced
    from launcher.stopping import StopRequest

    stream.seed_generators(settings.seed)
    data = build_data(settings.data)
    shards = settings.canonical_shards if settings.exact_across_devices else None
    plan = batch.plan_batch(
        len(data.train), settings.batch.global_size, ranks.world_size, settings.batch.max_per_device, shards
    )
    balanced = Balanced(data, settings.seed) if settings.sampling == "balanced" else None
    with sharded.initial_weights(settings.strategy, ranks):
        model = build("model", settings.model, **data.facts())
    resumes = run_directory.holds_checkpoint(composed)
    begun = finetune.begin(model, None if resumes else settings.init_from, settings.freeze)
    kind, loss = mixup.mixed(settings.mixup, data, losses.build_loss(settings.loss, data))
    lr_scale = batch.scale_learning_rate(settings.batch.lr_scaling, plan.global_size, settings.batch.base_size)
    optimizer = optimizers.build_optimizer(
        settings.optimizer, model, lr_scale, settings.decay_bias_and_norm, settings.layer_decay
    )
    total_steps = min(settings.epochs * plan.steps_per_epoch, settings.max_steps or sys.maxsize)
    schedule = schedulers.build_schedule(settings.scheduler, optimizer, total_steps, plan.steps_per_epoch)
    recompute(model, settings.activation_checkpointing or [])
    wanted = {
        "checkpoint.best": settings.checkpoint.best,
        "scheduler.metric": schedule.metric,
        "early_stopping.metric": settings.early_stopping.metric,
    }
    engine.check_figures(data, settings.metrics, wanted if settings.eval_every is not None else {})
    if shards is not None:
        engine.check_exact(model)
    if settings.test_time_flip:
        check_mirror(data)
    sharding = sharded.plan_sharding(settings.strategy, model, ranks)

    # 3. The run directory, made by rank 0; then the devices, and the same directory for every rank
    directory = run_directory.open_run_directory(composed) if ranks.rank == 0 else None
    accelerator = distributed.start(
        ranks, on_cpu, settings.mixed_precision, settings.threads, settings.timeout, settings.deterministic,
        settings.strategy, settings.float32_matmul_precision,
    )  # fmt: skip
    data.move_to(accelerator.device)
    watch = Watch(ranks, settings.timeout) if ranks.world_size > 1 else None
    path = distributed.from_rank_0(directory and directory.path, ranks.world_size)
    if directory is not None:
        reporter.log_to(path)
        log.info("run        %s%s", path, ", resumed" if directory.resumed else "")
        log.info("data       %s", data)
        for line in provenance.write(path, composed.plain(), data, ranks.world_size, accelerator.device):
            log.warning("changed    %s", line)
        log.info(
            "model      %s, %s parameters", type(model).__name__, f"{sum(p.numel() for p in model.parameters()):,}"
        )
        for line in begun:
            log.info(line)

    # 4. Wrap the model, and take up what a run in this directory has done before
    device = accelerator.device
    if sharding is None:  # else it goes there block by block
        model.to(device)
    loss.to(device)
    found = checkpoint.newest_good(path / "checkpoints") if directory is not None else None
    found = distributed.from_rank_0(found, ranks.world_size)
    saved = checkpoint.read_checkpoint(found) if found is not None else None
    progress = checkpoint.Progress() if saved is None else checkpoint.Progress(**saved[1]["progress"])
    if settings.batch.max_per_device == "auto":
        if progress.max_per_device is None:
            progress.max_per_device = engine.probe(model, loss, data.train, plan, accelerator, ranks)
        plan = plan.capped(progress.max_per_device)
    log.info("batch      %s", plan)
    trainer = sharded.choose_trainer(sharding, shards)(
        model, loss, optimizer, schedule, accelerator, ranks, settings.seed, settings.clip_grad_norm,
        settings.ema_decay, settings.compile, settings.channels_last,
        divergence.Rollbacks(path / "rollbacks.json", directory is not None),
        settings.clip_grad_value, settings.log_grad_norm,
    )  # fmt: skip
    samples = stream.of_rank(data.train, plan, settings.seed, ranks, device, settings.num_workers, balanced, kind)
    with engine.memory_advice(plan):
        trainer.warm_up(samples)
    if saved is not None:
        checkpoint.restore(*saved, trainer, ranks)
        log.info("resume     from %s, at step %d of %d", found.name, progress.step, total_steps)
        end = progress.step if progress.ended else total_steps
        if distributed.from_rank_0(directory and directory.is_complete(end), ranks.world_size):
            log.info("finished already: nothing is left to do in %s", path)
            finish(watch)
            return 0
        if progress.step > total_steps:
            raise ConfigError(
                f"epochs, max_steps: {total_steps} updates, but this run has done {progress.step} already."
            )
    saver = keeper = None
    if directory is not None:
        saver = checkpoint.Saver(path / "checkpoints", settings.checkpoint.keep, settings.checkpoint.max_failures)
        keeper = reporter.Reporter(
            directory, progress.step, progress.recorded, total_steps, plan.steps_per_epoch, composed.plain(),
            list(settings.trackers), settings.wandb,
        )  # fmt: skip

    def measure(part: Any, flip: bool = False) -> engine.Evaluation | None:
        trainer.check()
        trainer.settle()
        return engine.evaluate(
            Mirrored(trainer.measured) if flip else trainer.measured, loss, part, data, accelerator, ranks,
            4 * plan.micro_size, settings.num_workers, settings.metrics, shards, lambda: bool(stop),
            sharding is not None,
        )  # fmt: skip

    def interval(every: int | str | None) -> int:
        return plan.steps_per_epoch if every == "epoch" else int(every or 0)

    # As plain numbers: reading them from the config in each step takes longer than a small model's kernels.
    eval_every, log_every = interval(settings.eval_every), interval(settings.log_every)
    save_every = interval(settings.checkpoint.every)

    def over() -> bool:
        return progress.step == total_steps or progress.ended is not None

    def due(every: int) -> bool:
        return every > 0 and (progress.step % every == 0 or over())

    def look() -> bool:
        """Evaluate and log where it is due, as one row of the record. False where it was interrupted, with no row."""
        figures: dict[str, float] = {}
        if due(eval_every):
            with clock.during("evaluating"):
                evaluation = measure(data.validation)
            if evaluation is None:
                return False
            figures = {f"eval/{name}": value for name, value in evaluation.figures.items()}
            progress.note(figures, settings.checkpoint.best, settings.checkpoint.best_mode)
            progress.watch(figures, **settings.early_stopping)
            if schedule.metric is not None:
                schedule.observe(figures[schedule.metric])
        if due(log_every):
            figures = trainer.read_window() | figures
        if figures:
            timing = clock.row(progress.step, plan)
            if keeper is not None:
                keeper.row(progress.step, figures | {"lr": trainer.lr}, timing)
            if after_row is not None:
                after_row(path, progress.step, figures)
        return True

    def save() -> None:
        with clock.during("saving"):
            state = checkpoint.gather_state(trainer, progress, ranks)
            weights = trainer.weights(trainer.measured)
            if saver is not None and keeper is not None:
                keeper.record.sync()
                saver.save(progress.step, weights, state, progress.best_step)
                stop.reserve = REPORT_SECONDS + 2 * saver.seconds

    def loop() -> None:
        """The loop, always in this order: step, evaluate, log, save, stop."""
        if not progress.seen:  # what the run before this one had no time for
            progress.seen = look()
            if not progress.seen or over():
                return save()
        for part in clock.waiting(samples.batches(progress.step, progress.step if over() else total_steps)):
            trainer.wants_to_stop = bool(stop)
            stopping = trainer.step(part)
            progress.step += 1
            if watch is not None:
                watch.step = progress.step
            if profiler is not None:
                profiler.step()
            progress.seen = not (stopping and due(eval_every)) and look()
            stopping = stopping or not progress.seen
            if due(save_every) or over() or stopping:
                save()
            if stopping or over():
                return

    # 5. Train; where it diverges, stop, or go back to the last checkpoint and leave the batch out
    # Until here a signal simply ends the process: nothing is lost.
    stop = StopRequest(config.parse_duration(settings.max_time), REPORT_SECONDS)
    clock = Clock(progress.step, device, ranks, trainer.forward, *trainer.operations(samples), data.tokens)
    profiler = Profiler(path / "trace.json") if settings.profile and ranks.rank == 0 else None
    while True:
        try:
            with engine.memory_advice(plan):
                loop()
            break
        except divergence.Diverged as error:
            error.samples = samples.samples(error.step)
            if settings.divergence.action == "stop" or trainer.rollbacks.count >= settings.divergence.max_rollbacks:
                raise
            log.warning("%s\nGoing back to the last checkpoint.", error)
            if saver is not None:
                saver.wait()
            trainer.rollbacks.go_back(error.step)
            progress = checkpoint.go_back(path / "checkpoints", trainer, ranks)
            if keeper is not None:
                keeper.go_back(progress.recorded)

    if profiler is not None:
        profiler.close()

    # 6. The end: everything saved; the test part is measured once, when the run is complete
    finished = over() and progress.seen
    evaluation = measure(data.test, settings.test_time_flip) if finished else None
    if directory is not None and keeper is not None and saver is not None:
        saver.wait()
        status = "finished" if evaluation is not None else "stopped"
        summary = {
            "status": status,
            "step": progress.step,
            "epoch": progress.step / plan.steps_per_epoch,
            "samples_seen": plan.samples_seen(progress.step),
            "world_size": ranks.world_size,
            "global_batch_size": plan.global_size,
            "per_device_batch_size": plan.per_device_size,
            "accumulation_steps": plan.accumulation_steps,
            "threads": torch.get_num_threads(),
            **({"reason": progress.ended} if progress.ended else {}),
            **clock.totals(progress.step, plan),
            **provenance.summary(),
        }
        keeper.close(summary, progress, evaluation, data.class_names)
        if status == "finished":
            log.info("finished   %s%s", f"{progress.ended}; " if progress.ended else "", path / "report.html")
        else:
            command = directory.resume_command(composed.overrides)
            run_directory.write_json(
                path / "stopped.json", {"step": progress.step, "reason": stop.reason, "resume": command}
            )
            log.info(
                "stopped    at step %d (%s), everything is saved. To go on:\n  %s", progress.step, stop.reason, command
            )
        directory.close()
    finish(watch)
    return 0


if __name__ == "__main__":
    main()
