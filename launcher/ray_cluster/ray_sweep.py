"""A sweep on a Ray cluster: from what Hydra's launcher is handed to the comparison of what ran."""

import os
from collections.abc import Sequence

from launcher.core.durations import parse_duration
from launcher.ray_cluster.ray_executor import RayExecutor
from launcher.ray_cluster.ray_options import RayOptions
from launcher.ray_cluster.trial_on_ray import Start
from launcher.slurm import snapshot
from launcher.sweep.conclusion import conclude
from launcher.sweep.executor import environment_of_trials
from launcher.sweep.feed import Feed
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.sweep import Sweep
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial, next_submission


def run_sweep(sweep: Sweep, job_overrides: Sequence[Sequence[str]], first: int, options: RayOptions) -> list[Trial]:
    """Check all trials, the number of the first being `first`, then run those that are not done yet.

    Returns:
        The trials as they ended.

    Raises:
        ConfigError: Something is wrong; no trial has been started.
    """
    sweep.refuse_after_stop()
    options.join()
    for trial in sweep.compose(job_overrides, first):
        options.shape(trial)
    _check_nodes(sweep, options)
    sweep.begin()
    sweep.remember()
    sweep.print_counts()
    _execute(sweep, options)
    return sweep.trials


def run_feed(sweep: Sweep, feed: Feed, options: RayOptions) -> list[Trial]:
    """Check a feed, then run what it chooses, until it is over or asked to stop.

    Returns:
        The trials that ran.

    Raises:
        ConfigError: Something is wrong; no trial has been started.
    """
    sweep.refuse_after_stop()
    options.join()
    feed.like = feed.check()
    options.shape(feed.like)
    _check_nodes(sweep, options)
    sweep.begin()
    feed.open()
    print(f"sweep      {os.path.relpath(sweep.path)}: {feed}", flush=True)
    _execute(sweep, options, feed)
    return sweep.trials


def _check_nodes(sweep: Sweep, options: RayOptions) -> None:
    """Check that the nodes see what the trials need; the copy of the code will be in the sweep's directory."""
    places = [os.getcwd()]
    if not options.snapshot:
        places.append(str(snapshot.PACKAGE / "trial.py"))
    options.cluster.check_places(sweep.path, places)


def _execute(sweep: Sweep, options: RayOptions, feed: Feed | None = None) -> None:
    """Run the trials that are not done yet, and those of a feed, and compare them all."""
    print(f"cluster    {options.cluster}", flush=True)
    stop = sweep.take_stop_requests()  # after Ray, which takes SIGTERM for itself
    with ProgressDisplay(sweep.trials, feed) as display:
        to_run = sweep.trials if feed is None else feed.waiting()
        if feed is not None or any(trial.state != State.FINISHED for trial in to_run):
            executor = _executor(sweep, to_run, options, display, feed)
            executor.run(stop, parse_duration(options.max_time_per_run))
    if feed is not None:
        feed.close()
    conclude(sweep.path, *((options.metric, options.metric_mode) if feed is None else feed.compared_by))
    if stop:
        command = sweep.command(options.world)
        print(f"stopped    ({stop.reason}), everything is saved. To go on:\n  {command}", flush=True)
    sweep.print_failures()
    sweep.release()


def _executor(
    sweep: Sweep, trials: Sequence[Trial], options: RayOptions, display: ProgressDisplay, feed: Feed | None
) -> RayExecutor:
    """The executor, for which the code has been copied, into a directory for this start alone."""
    directory = next_submission(sweep.path)
    (directory / "tasks").mkdir(parents=True)
    code = snapshot.none()
    if options.snapshot:
        code = snapshot.plan(directory / "code")
        if left_out := snapshot.take(code, sweep.path):
            display.note(f"warning    not copied, being larger than 20 MB: {', '.join(left_out)}")
        display.note(f"code       {os.path.relpath(code.code)}: what you edit from now on does not reach these trials")
    start = Start(code.code, os.getcwd(), environment_of_trials())
    return RayExecutor(trials, options, code, directory / "tasks", start, display, feed)
