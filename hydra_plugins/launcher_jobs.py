"""Launchers for any Hydra application: hydra/launcher=device_pool, and slurm_array; and the options of a sweeper.

Hydra imports this at every start of any application, so it imports nothing heavy itself, and nothing of this package.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class DevicePoolConf:
    """The settings of hydra/launcher=device_pool."""

    _target_: str = "hydra_plugins.launcher_jobs.DevicePoolLauncher"
    devices: Any = "auto"  # auto: GPUs that nobody uses, else cores; or how many; [0,GPU-8932]: these, used or not
    devices_per_run: int = 1  # devices of a job, which is one process
    trials_per_device: int = 1  # jobs that share a device
    max_parallel: int | None = None  # most jobs at once, where memory or a licence is short; null: no limit
    max_time_per_run: Any = None  # seconds, "90m" or "12h": a job that takes longer has failed
    preload: bool = True  # the program is imported once for all jobs; false: by each, where its import starts CUDA
    resume: bool = True  # jobs that have finished in hydra.sweep.dir are not run again


@dataclass
class SbatchConf:
    """What a job asks SLURM for: long options of sbatch, with _ for -; null: the default of the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: Any = None  # in quotes, such as "12:00:00"
    gpus_per_node: Any = None  # how many GPUs the one process of a job has
    cpus_per_task: int | None = None
    mem: Any = None  # such as 64G
    signal: str | None = None  # such as USR1@120
    requeue: bool = True  # back into the queue when preempted or when a node fails
    open_mode: str = "append"
    more: dict[str, Any] = field(default_factory=dict)  # any others


@dataclass
class SlurmArrayConf:
    """The settings of hydra/launcher=slurm_array."""

    _target_: str = "hydra_plugins.launcher_jobs.SlurmArrayLauncher"
    max_parallel: int | None = None  # most jobs at once; null: SLURM decides
    max_requeues: int = 3  # times in a row that a job may be requeued
    wait: bool = False  # true: until all have ended; else Hydra's sweeper gets to know no results
    dry_run: bool = False  # true: print the script, ask SLURM whether it would take it, and submit nothing
    resume: bool = True  # jobs that have finished in hydra.sweep.dir are not run again
    sbatch: SbatchConf = field(default_factory=SbatchConf)


@dataclass
class ListsConf:
    """The settings of hydra/sweeper=lists."""

    _target_: str = "hydra_plugins.launcher_sweeps.ListSweeper"
    max_batch_size: int | None = None  # jobs handed to the launcher together; null: all
    zip: Any = None  # [[optimizer,lr]]: values that go in step, not in every combination
    seeds: int | None = None  # 5: each job with seed=0 to seed=4
    trials: str | None = None  # a file with the overrides of a job in each line
    conditions: Any = None  # ["momentum if optimizer=sgd"]: settings that only some jobs have
    params: dict[str, str] | None = None  # what is swept without being asked for


class DevicePoolLauncher(Launcher):
    """Runs the jobs of a multirun on the devices of this machine, each in a process of its own."""

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in options.items()
        }
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra with what `launch` will need."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that have not finished yet.

        Returns:
            For each job what its function returned; the error of one that failed is raised where that is asked for.

        Raises:
            CompactHydraException: A setting is wrong; no job has been started. Hydra shows the message alone.
        """
        from launcher.core.errors import ConfigError
        from launcher.sweep.hydra_sweep import Application

        assert self.config is not None and self.task_function is not None and self.hydra_context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        application = Application(self.hydra_context, self.task_function, self.config)
        try:
            return self.run(application, job_overrides, initial_job_idx)
        except ConfigError as error:
            raise CompactHydraException(f"error: {error}") from error

    def run(self, application: Any, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """Run the jobs of an `Application`; see `launch`."""
        from launcher.sweep.device_pool import PoolOptions, launch

        unset: Any = {"max_points": 10**9, "metric": None, "metric_mode": None, "parallel": "auto"}
        return launch(application, PoolOptions(**unset, **self.options), job_overrides, first)


class SlurmArrayLauncher(DevicePoolLauncher):
    """Submits the jobs of a multirun as one SLURM job array."""

    def run(self, application: Any, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """See DevicePoolLauncher."""
        from launcher.slurm.slurm_array import JobArrayOptions, launch

        options, sbatch = dict(self.options), dict(self.options["sbatch"])
        del options["sbatch"]
        cluster = sbatch.pop("more") | sbatch
        unset: Any = {"max_points": 10**9, "metric": None, "metric_mode": None, "snapshot": False}
        return launch(application, JobArrayOptions(**unset, **options, cluster=cluster), job_overrides, first)


def register() -> None:
    """Let Hydra know the options of hydra/launcher and hydra/sweeper."""
    options = {"hydra/launcher": {"device_pool": DevicePoolConf, "slurm_array": SlurmArrayConf}}
    options["hydra/sweeper"] = {"lists": ListsConf}
    for group, nodes in options.items():
        for name, node in nodes.items():
            ConfigStore.instance().store(group=group, name=name, node=node, provider="hydra-accelerate-launcher")


register()
