"""The settings of the launchers of sweeps: conf/hydra/launcher/."""

import functools
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from launcher.config import messages
from launcher.config.checks import check_options
from launcher.core.errors import ConfigError
from launcher.core.processes import cores
from launcher.core.ranges import parse_range
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

    @property
    def per_run(self) -> int | str:
        """Processes of a trial as a setting has them: how many, or a range such as 1-4."""
        return self.world

    def sizes(self, settings: Any) -> tuple[int, ...]:
        """Numbers of processes that a trial may have, ascending."""
        return (self.world,)

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
        """See LauncherOptions: the fewest."""
        return self._range[0]

    @property
    def most(self) -> int:
        """Most processes of a trial."""
        return self._range[1]

    @property
    def _range(self) -> tuple[int, int]:
        return parse_range(
            os.environ.get("WORLD_SIZE", "1") if self.devices_per_run == "auto" else self.devices_per_run
        )

    @property
    def per_run(self) -> int | str:
        """See LauncherOptions."""
        return self.world if self.world == self.most else f"{self.world}-{self.most}"

    def sizes(self, settings: Any) -> tuple[int, ...]:
        """See LauncherOptions: the fewest, and as many more as share a global batch evenly."""
        parts = settings.canonical_shards if settings.exact_across_devices else settings.batch.global_size
        return (self.world, *(count for count in range(self.world + 1, self.most + 1) if parts % count == 0))

    def place(self, settings: Any) -> tuple[str, int | str]:
        """See LauncherOptions."""
        kind = "cpu" if settings.device == "cpu" or not devices.may_have_gpus() else "gpu"
        if kind == "cpu" and settings.mixed_precision == "fp16":
            raise ConfigError(messages.FP16_ON_CPU)
        if self.trials_per_device != 1 and self.world != self.most:
            raise ConfigError(
                f"hydra.launcher.devices_per_run={self.devices_per_run}, trials_per_device={self.trials_per_device}: a "
                "trial gets whole devices, more or fewer, or a part of one. Choose one of the two."
            )
        if self.trials_per_device != 1 and settings.batch.max_per_device == "auto":
            raise ConfigError(
                f"hydra.launcher.trials_per_device={self.trials_per_device}, batch.max_per_device=auto: would find "
                "what fits into a part of a device. Give a number, with which a trial ends as on a device alone."
            )
        threads = settings.threads
        if threads == "auto" and (threads := exported_threads()) is None:
            # Those that run at once share the cores: as many as may, or as there are GPUs for. On a CPU each takes one.
            # They keep their threads when they get more devices, so that the most that there may be counts.
            there = self.world * self.fit_on_gpus if self.world == self.most else self.count_gpus
            at_once = [self.most * self.limit] if self.limit else []
            at_once += [there] if kind == "gpu" else []
            threads = max(1, len(cores()) // min(at_once)) if at_once else 1
        return kind, threads

    @functools.cached_property
    def listed(self) -> list[gpus.Gpu] | None:
        """The GPUs of this machine, and what computes on them as the sweep starts; None without an NVIDIA driver."""
        return gpus.look()

    @property
    def count_gpus(self) -> int:
        """How many GPUs the sweep may use, as far as that is known before it looks."""
        count = devices.count_gpus(self.listed)
        if isinstance(self.devices, list | int):
            count = len(self.devices) if isinstance(self.devices, list) else min(self.devices, count)
        return count

    @property
    def fit_on_gpus(self) -> int:
        """Trials that the GPUs have room for at once, at least 1."""
        shared = self.trials_per_device if isinstance(self.trials_per_device, int) else USUALLY
        return max(1, self.count_gpus // self.world) * shared

    @property
    def limit(self) -> int | None:
        """Most trials at once."""
        return min((limit for limit in (self.parallel, self.max_parallel) if isinstance(limit, int)), default=None)
