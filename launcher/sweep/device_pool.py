"""The jobs of any Hydra application on the devices of this machine: `hydra/launcher=device_pool`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn

from launcher.core.compat_python import main_module
from launcher.core.durations import parse_duration
from launcher.core.errors import ConfigError
from launcher.sweep import devices
from launcher.sweep.executor import Executor
from launcher.sweep.fork_server import warm_up
from launcher.sweep.hydra_sweep import PRELOAD, Application, HydraSweep
from launcher.sweep.local import open_pools
from launcher.sweep.options import LocalOptions
from launcher.sweep.packing import Packing
from launcher.sweep.preloading import IMPORTING, PROGRAM, UNGUARDED
from launcher.sweep.progress import ProgressDisplay
from launcher.sweep.trial_state import State


@dataclass
class PoolOptions(LocalOptions):
    """The settings of hydra/launcher=device_pool, and of those of conf/hydra/launcher/local.yaml that it has not."""

    preload: bool
    resume: bool

    SCHEMA = "DevicePool"

    def place(self, settings: Any) -> tuple[str, int | str]:
        """See LauncherOptions: on a CPU one core for each device."""
        return "gpu" if devices.may_have_gpus() else "cpu", 1


def launch(
    application: Application, options: PoolOptions, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Run the jobs that have not finished yet, the number of the first being `first`.

    Returns:
        What each job returned, those that had finished before too.

    Raises:
        ConfigError: Something is wrong; no job has been started.
        SystemExit: It was asked to stop; all jobs have ended.
    """
    if os.environ.get(IMPORTING):
        raise ConfigError(UNGUARDED)
    sweep = HydraSweep(application, options, options.resume)
    program = {PROGRAM: json.dumps(main_module())} if options.preload else {}
    with sweep.stopping() as stop:
        for trial in sweep.compose(job_overrides, first):
            if trial.state != State.FINISHED:
                warm_up(PRELOAD, program)
        pools = open_pools(sweep.trials, options)
        sweep.begin()
        sweep.print_counts()
        for pool in pools.values():
            shared = "" if options.trials_per_device == 1 else f", each for {options.trials_per_device} jobs"
            print(f"devices    {pool.kind} {','.join(pool.locks)}, {options.world} per job{shared}", flush=True)
        with ProgressDisplay(sweep.trials) as display:
            max_time = parse_duration(options.max_time_per_run)
            shares = Packing(options.trials_per_device)
            Executor(sweep.trials, pools, options.limit, max_time, display, None, shares).run(stop)
        if stop:
            print(f"stopped    ({stop.reason}). To go on:\n  {sweep.command()}", flush=True)
        sweep.print_failures()
    return sweep.returned()
