"""The settings of the launchers of sweeps: conf/hydra/launcher/."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from launcher.config.rules import TEXT, Rule, one_of, parse_duration, whole
from launcher.config.schema import FP16_ON_CPU
from launcher.core.errors import ConfigError
from launcher.distributed import gpus, process_group
from launcher.sweep import devices


@dataclass
class LauncherOptions:
    """What all launchers have in common."""

    max_parallel: int | None
    max_points: int
    metric: str | None
    metric_mode: str | None

    RULES: ClassVar[Mapping[str, Rule]] = {
        "max_parallel": whole(1).or_null(),
        "max_points": whole(1),
        "metric": TEXT.or_null(),
        "metric_mode": one_of("min", "max").or_null(),
    }

    def check(self) -> None:
        """Check what needs neither a device nor SLURM.

        Raises:
            ConfigError: A setting is wrong.
        """
        for name, rule in self.RULES.items():
            if not rule.fits(value := getattr(self, name)):
                raise ConfigError(f"hydra.launcher.{name}={value}: must be {rule.words}.")

    @property
    def world(self) -> int:
        """Processes of a trial, as far as that is known before it runs."""
        raise NotImplementedError

    def place(self, settings: Any) -> tuple[str, int | str]:
        """Where a trial will run, and on how many CPU threads: as far as that is known before it does.

        Raises:
            ConfigError: It cannot run there.
        """
        raise NotImplementedError


@dataclass
class LocalOptions(LauncherOptions):
    """The settings of conf/hydra/launcher/local.yaml."""

    devices: str | int | list[Any]
    devices_per_run: str | int
    parallel: str | int
    max_time_per_run: str | float | None

    RULES: ClassVar[Mapping[str, Rule]] = {
        "devices_per_run": whole(1).or_word("auto"),
        "parallel": whole(1).or_word("auto"),
        **LauncherOptions.RULES,
    }

    def check(self) -> None:
        """See LauncherOptions."""
        super().check()
        try:
            parse_duration(self.max_time_per_run)
        except ConfigError as error:
            raise ConfigError(str(error).replace("max_time=", "hydra.launcher.max_time_per_run=")) from None

    @property
    def world(self) -> int:
        """Processes of a trial."""
        if self.devices_per_run != "auto":
            return int(self.devices_per_run)
        return int(os.environ.get("WORLD_SIZE", "1"))

    def place(self, settings: Any) -> tuple[str, int | str]:
        """See LauncherOptions."""
        kind = "cpu" if settings.device == "cpu" or not devices.may_have_gpus() else "gpu"
        if kind == "cpu" and settings.mixed_precision == "fp16":
            raise ConfigError(FP16_ON_CPU)
        threads = settings.threads
        if threads == "auto" and (threads := process_group.exported_threads()) is None:
            # Those that run at once share the cores: as many as may, or as there are GPUs for. On a CPU each takes one.
            limits = [limit for limit in (self.limit, self.fit_on_gpus if kind == "gpu" else None) if limit]
            threads = max(1, len(devices.cores()) // (self.world * min(limits))) if limits else 1
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
        return max(1, count // self.world)

    @property
    def limit(self) -> int | None:
        """Most trials at once."""
        limits = [int(limit) for limit in (self.parallel, self.max_parallel) if isinstance(limit, int)]
        return min(limits) if limits else None
