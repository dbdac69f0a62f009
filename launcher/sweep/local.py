"""A sweep on this machine: from what Hydra's launcher is handed to the comparison of what ran."""

import os
from collections.abc import Sequence
from typing import Any

from launcher.core.compat_python import stop_fork_server
from launcher.core.durations import parse_duration
from launcher.core.errors import ConfigError
from launcher.core.processes import cores
from launcher.distributed import gpus
from launcher.distributed.ranks import join
from launcher.sweep import devices
from launcher.sweep.conclusion import conclude
from launcher.sweep.executor import Executor
from launcher.sweep.feed import Feed
from launcher.sweep.fork_server import CONTEXT, start_process, warm_up
from launcher.sweep.leases import Pool, open_pool
from launcher.sweep.options import LocalOptions
from launcher.sweep.packing import Packing
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.sweep import Sweep
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial


def run_sweep(sweep: Sweep, job_overrides: Sequence[Sequence[str]], first: int, options: LocalOptions) -> list[Trial]:
    """Check all trials, the number of the first being `first`, then run those that are not done yet.

    Returns:
        The trials as they ended.

    Raises:
        ConfigError: Something is wrong; no trial has been started.
    """
    _check_place(sweep)
    print(f"sweep      {len(job_overrides)} trials to compose and check", flush=True)
    try:
        for trial in sweep.compose(job_overrides, first):
            if trial.state != State.FINISHED:
                warm_up()  # not before: what is wrong with one trial is mostly wrong with the first
        pools = open_pools(sweep.trials, options)
        sweep.begin()
        sweep.remember()
    except BaseException:
        stop_fork_server()
        raise
    sweep.print_counts()
    _execute(sweep, pools, options)
    return sweep.trials


def run_feed(sweep: Sweep, feed: Feed, options: LocalOptions) -> list[Trial]:
    """Check a feed, then run what it chooses, until it is over or asked to stop.

    Returns:
        The trials that ran.

    Raises:
        ConfigError: Something is wrong; no trial has been started.
    """
    _check_place(sweep)
    try:
        feed.like = feed.check()
        warm_up()
        pools = open_pools([feed.like], options)
        sweep.begin()
        feed.open()
    except BaseException:
        stop_fork_server()
        raise
    print(f"sweep      {os.path.relpath(sweep.path)}: {feed}", flush=True)
    _execute(sweep, pools, options, feed)
    return sweep.trials


def _check_place(sweep: Sweep) -> None:
    """Refuse to go on after a stop, and on several nodes."""
    sweep.refuse_after_stop()
    ranks = join()
    if ranks.local_world_size != ranks.world_size:
        raise ConfigError(
            "A sweep with hydra/launcher=local runs on one machine: start it on one, or as a SLURM array."
        )


def _execute(sweep: Sweep, pools: dict[str, Pool], options: LocalOptions, feed: Feed | None = None) -> None:
    """Run the trials that are not done yet, and those of a feed, and compare them all."""
    for pool in pools.values():
        shared = "" if options.trials_per_device == 1 else f", each for {options.trials_per_device} trials"
        print(f"devices    {pool.kind} {','.join(pool.locks)}, {options.per_run} per trial{shared}", flush=True)
    stop = sweep.take_stop_requests()
    all_done = all(trial.state == State.FINISHED for trial in sweep.trials)
    max_time = parse_duration(options.max_time_per_run)
    with ProgressDisplay(sweep.trials, feed) as display:
        to_run = sweep.trials if feed is None else feed.waiting()
        executor = Executor(to_run, pools, options.limit, max_time, display, feed, Packing(options.trials_per_device))
        executor.run(stop)
        executor.showing.finish((sweep.path / name for name in sweep.names), stop)
    if feed is not None:
        feed.close()
    by = (options.metric, options.metric_mode) if feed is None else feed.compared_by
    if all_done:
        conclude(sweep.path, *by)
    else:
        start_process(conclude, sweep.path, *by).join()  # which has matplotlib
    if stop:
        command = sweep.command(options.per_run)
        print(f"stopped    ({stop.reason}), everything is saved. To go on:\n  {command}", flush=True)
    sweep.print_failures()
    stop_fork_server()
    sweep.release()


def open_pools(trials: Sequence[Trial], options: LocalOptions) -> dict[str, Pool]:
    """The devices that the sweep may use, by kind; a ConfigError where they are not those that it needs."""
    found = _find_gpus(options.listed) if any(trial.kind == "gpu" for trial in trials) else {}
    for trial in trials:
        if not found:
            trial.kind = "cpu"  # a driver is there, but torch is built without it
    pools = {}
    for kind in sorted({trial.kind for trial in trials}):
        there = found if kind == "gpu" else {str(core): str(core) for core in cores()}
        pool, notes = open_pool(kind, there, options.devices, options.most, options.listed)
        for line in notes:
            print(f"note       {line}", flush=True)
        pools[kind] = pool
        if options.world > len(pool):
            raise ConfigError(_too_few(pool, trials[0], options))
    return pools


def _find_gpus(listed: list[gpus.Gpu] | None) -> dict[str, str]:
    """The GPUs that trials can have, as `devices.visible_gpus` finds them, in a process that ends."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    asking = start_process(_send_gpus, sender, listed)
    sender.close()
    try:
        found: dict[str, str] = receiver.recv()
    except EOFError as error:
        raise ConfigError("The GPUs of this machine do not answer torch: see the traceback above.") from error
    asking.join()
    if trouble := listed and gpus.visible(listed, os.environ.get("CUDA_VISIBLE_DEVICES")).trouble:
        print(f"note       {trouble}", flush=True)
    return found


def _send_gpus(sender: Any, listed: list[gpus.Gpu] | None) -> None:
    sender.send(devices.visible_gpus(listed))


def _too_few(pool: Pool, trial: Trial, options: LocalOptions) -> str:
    is_gpu = pool.kind == "gpu"
    what = f"{len(pool)} GPUs" if is_gpu else f"{len(pool)} cores, and no GPU is used"
    more = "" if is_gpu else f" hydra.launcher.devices={options.world} lets them share cores."
    asked = f"hydra.launcher.devices_per_run={options.devices_per_run}"
    if options.devices_per_run == "auto":
        asked = f"{options.world} processes per trial"
    return f"{asked}: trial {trial.index} and all others need {options.world} devices, and there are {what}.{more}"
