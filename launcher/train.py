"""One training run, from the command line to the report. Read it from top to bottom.

    accelerate launch launcher/train.py optimizer=sgd
    python launcher/train.py -m optimizer=sgd,adam

Nothing heavy is imported at the top: help and wrong settings are answered before torch is loaded.
"""

import os
import sys

if __name__ == "__main__" and not __package__:  # started as a file; launcher/__init__.py then puts the path in order
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    import launcher  # first: from here on Ctrl-C ends this without a traceback  # noqa: F401

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from launcher import check
from launcher.config import composition
from launcher.config.command_line import parse_arguments, show
from launcher.config.composed import Composed, publish
from launcher.core.durations import parse_duration
from launcher.distributed.devices import check_compression, choose_device, compare_devices
from launcher.distributed.exit_status import guarded
from launcher.distributed.process_group import start
from launcher.distributed.ranks import executes_sweep, join
from launcher.distributed.watchdog import watched
from launcher.run import run_directory
from launcher.run.rank_zero import RankZero
from launcher.sweep import multirun

log = logging.getLogger("launcher")


def main() -> None:
    """The console command: exit status 0 when finished or stopped on request, 2 for wrong input, 1 for a failure."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Do what a command line asks for: show something, start a grid (-m), or train."""
    arguments = parse_arguments(argv)
    if show(arguments, "train"):
        return 0
    with composition.opened(arguments, "train") as (hydra, name):
        composed = composition.compose_run(hydra, name, arguments)
        if composed is None:
            if not executes_sweep(join()):
                return 0
            return multirun.sweep(hydra, name, arguments.overrides)
    return train(composed)


def train(composed: Composed, after_row: Callable[[Path, int, Mapping[str, float]], None] | None = None) -> int:
    """The story of one run.

    Args:
        composed: The checked config; nobody below gets to see all of it.
        after_row: Called on every rank with the run directory and each row of the record; what it raises ends the run.

    Returns:
        Exit status.
    """
    os.environ.update(composed.hydra.job.env_set)
    if composed.settings.check:
        return check.check(composed)
    with ExitStack() as ending:  # what is entered last ends first: the ranks part before rank 0 draws its pictures
        # 1. Which rank am I, and on what kind of device
        settings = composed.settings
        ranks = join()
        on_cpu = choose_device(settings, ranks)
        compare_devices(settings.device, ranks, on_cpu, settings.timeout)
        check_compression(settings.strategy, ranks)
        rank_zero = ending.enter_context(RankZero(composed, ranks))

        # 2. Build everything on the CPU: what is wrong ends here, before a device or a directory is touched
        from launcher.build import build
        from launcher.training import sharded

        with run_directory.settled(composed, ranks) as composed:
            settings = composed.used()
            resumed = run_directory.holds_checkpoint(composed)
            build_model = partial(sharded.build_model, settings.strategy, ranks)
            kept = run_directory.kept_facts(composed)
            parts = build(settings, ranks, ranks.world_size, resumed, build_model, kept=kept)
        data, plan, total_steps = parts.data, parts.plan, parts.total_steps

        from launcher.batching import stream
        from launcher.distributed.stop_request import StopRequest
        from launcher.loop import REPORT_SECONDS, Loop, LoopSettings
        from launcher.run.record import Record
        from launcher.training import probe
        from launcher.training.advice import advice
        from launcher.training.clock import Clock
        from launcher.training.divergence import Rollbacks
        from launcher.training.evaluation import EvaluationSettings, Evaluator
        from launcher.training.flops import useful_threads
        from launcher.training.hooks import Hooks
        from launcher.training.resume import find_resume_point
        from launcher.training.trainer import TrainerSettings

        # 3. The run directory, made by rank 0 and told to every rank; then the devices
        path = rank_zero.open_directory(composed, parts)
        useful = partial(useful_threads, parts.model, data.train, plan.micro_size) if on_cpu else lambda: None
        accelerator = start(ranks, settings, on_cpu, useful)
        device = accelerator.device
        ending.enter_context(watched(ranks, settings.timeout))
        data.move_to(device)
        publish(composed.hydra, path)
        rank_zero.announce(parts, device)
        if rank_zero.complete:
            return 0

        # 4. The trainer, and what a run in this directory has done before
        if parts.sharding is None:  # else the model goes there block by block
            parts.model.to(device)
        parts.learner.task.to(device)
        how = LoopSettings.of(settings, plan, total_steps)
        record = Record(path / "metrics.jsonl")
        resume_point = find_resume_point(path / "checkpoints", record, ranks, how.rules, how.eval_every, total_steps)
        progress = resume_point.progress
        rollbacks = Rollbacks(path / "rollbacks.json", rank_zero.writes)
        make_trainer = sharded.choose_trainer(parts.sharding, settings.exact_across_devices)
        trainer = make_trainer(parts.learner, TrainerSettings.of(settings), accelerator, ranks, rollbacks)
        if settings.batch.max_per_device == "auto":
            plan = probe.fit_plan(trainer, parts, progress, path, settings.test_time_flip)
        log.info("batch      %s", plan)
        # Until here a signal simply ends the process: nothing is lost. From here on it starts others, that load samples
        stop = StopRequest(parse_duration(settings.max_time), REPORT_SECONDS)
        samples = stream.of_rank(
            data.train, plan, settings.seed, ranks, device, settings.num_workers, parts.sampler, parts.kind
        )
        ending.enter_context(advice(plan, trainer))
        trainer.warm_up(samples)
        hooks = Hooks(parts.hooks, trainer, data, plan.steps_per_epoch, path) if parts.hooks else None
        resume_point.restore(trainer, total_steps, hooks)
        rank_zero.begin(progress, total_steps, plan.steps_per_epoch, device)
        evaluation = EvaluationSettings(
            plan.evaluation_size(data.tokens), settings.num_workers, settings.metrics, plan.shards,
            in_step=parts.sharding is not None,
        )  # fmt: skip

        # 5. Train
        operations = trainer.operations(samples, settings.float32_matmul_precision)
        evaluator = Evaluator(parts.learner.task, accelerator, ranks, evaluation)
        clock = Clock(progress.step, device, ranks, trainer.forward, *operations, data.tokens)
        loop = Loop(
            trainer=trainer, samples=samples, plan=plan, data=data, evaluator=evaluator, settings=how,
            progress=progress, clock=clock, stop=stop, rank_zero=rank_zero, profiler=rank_zero.profiler(),
            hooks=hooks, after_row=after_row and partial(after_row, path),
        )  # fmt: skip
        loop.run()

        # 6. The end: everything is saved. Where no update is left, the last model and the best meet the test split
        tested = loop.test()
        predictions = loop.predict(settings.wandb.tables) if tested else None
        rank_zero.conclude(loop.progress, plan, clock, stop.reason, tested, predictions)
    return 0


if __name__ == "__main__":
    main()
