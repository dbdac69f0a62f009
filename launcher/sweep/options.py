"""The settings of the launchers of sweeps: conf/hydra/launcher/."""

import functools
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from launcher.config import messages
from launcher.config.checks import check_options
from launcher.core.errors import ConfigError
from launcher.core.processes import cores
from launcher.distributed import gpus
from launcher.distributed.threads import exported_threads
from launcher.sweep import devices

USUALLY = 4  # trials on a GPU by trials_per_device=auto, for the threads of each, before anything has been counted


@dataclass
class LauncherOptions:
    """What all launchers have in common."""

    max_parallel: int | None
    max_points: int
    metric: str | None
    metric_mode: str | None

    SCHEMA: ClassVar[str]  # name of their model in config/sweep_schema.py

    def check(self) -> None:
        """Check what needs neither a device nor SLURM; a ConfigError where a setting is wrong."""
        check_options(vars(self), self.SCHEMA)

    @property
    def world(self) -> int:
        """Processes of a trial, as far as that is known before it runs."""
        raise NotImplementedError

    def place(self, settings: Any) -> tuple[str, int | str]:
        """What a trial will run on (gpu, cpu or slurm) and its CPU threads; a ConfigError where it cannot run there."""
        raise NotImplementedError


@dataclass
class LocalOptions(LauncherOptions):
    """The settings of conf/hydra/launcher/local.yaml."""

    devices: str | int | list[Any]
    devices_per_run: str | int
    trials_per_device: str | int
    parallel: str | int
    max_time_per_run: str | float | None

    SCHEMA = "LocalSweep"

    @property
    def world(self) -> int:
        """See LauncherOptions."""
        if self.devices_per_run != "auto":
            return int(self.devices_per_run)
        return int(os.environ.get("WORLD_SIZE", "1"))

    def place(self, settings: Any) -> tuple[str, int | str]:
        """See LauncherOptions."""
        kind = "cpu" if settings.device == "cpu" or not devices.may_have_gpus() else "gpu"
        if kind == "cpu" and settings.mixed_precision == "fp16":
            raise ConfigError(messages.FP16_ON_CPU)
        if self.trials_per_device != 1 and settings.batch.max_per_device == "auto":
            raise ConfigError(
                f"hydra.launcher.trials_per_device={self.trials_per_device}, batch.max_per_device=auto: would find "
                "what fits into a part of a device. Give a number, with which a trial ends as on a device alone."
            )
        threads = settings.threads
        if threads == "auto" and (threads := exported_threads()) is None:
            # Those that run at once share the cores: as many as may, or as there are GPUs for. On a CPU each takes one.
            limits = [limit for limit in (self.limit, self.fit_on_gpus if kind == "gpu" else None) if limit]
            threads = max(1, len(cores()) // (self.world * min(limits))) if limits else 1
        return kind, threads

    @functools.cached_property
    def listed(self) -> list[gpus.Gpu] | None:
        """The GPUs of this machine, and what computes on them as the sweep starts; None without an NVIDIA driver."""
        return gpus.look()

    @property
    def fit_on_gpus(self) -> int:
        """Trials that the GPUs have room for at once, at least 1."""
        count = devices.count_gpus(self.listed)
        if isinstance(self.devices, list | int):
            count = len(self.devices) if isinstance(self.devices, list) else min(self.devices, count)
        shared = self.trials_per_device if isinstance(self.trials_per_device, int) else USUALLY
        return max(1, count // self.world) * shared

    @property
    def limit(self) -> int | None:
        """Most trials at once."""
        return min((limit for limit in (self.parallel, self.max_parallel) if isinstance(limit, int)), default=None)
