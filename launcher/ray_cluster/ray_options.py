"""The settings of conf/hydra/launcher/ray.yaml."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launcher.config import messages
from launcher.core.errors import ConfigError
from launcher.distributed.threads import exported_threads
from launcher.ray_cluster.placement import Cluster, Shape
from launcher.sweep.options import LauncherOptions
from launcher.sweep.trials import Trial


@dataclass
class RayOptions(LauncherOptions):
    """The settings of conf/hydra/launcher/ray.yaml; `join` comes before all that places trials."""

    address: str
    devices_per_run: str | int
    cpus_per_process: str | int
    max_time_per_run: str | float | None
    snapshot: bool

    SCHEMA = "RaySweep"

    @property
    def world(self) -> int:
        """See LauncherOptions."""
        if self.devices_per_run != "auto":
            return int(self.devices_per_run)
        return int(os.environ.get("WORLD_SIZE", "1"))

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster, which is joined by the first look."""
        return Cluster(self.address)

    def join(self) -> None:
        """Join the cluster; a ConfigError where that cannot be."""
        assert self.cluster is not None

    def place(self, settings: Any) -> tuple[str, int | str]:
        """See LauncherOptions: on a GPU where a node has one."""
        kind = "gpu" if settings.device != "cpu" and self.cluster.gpus else "cpu"
        if kind == "cpu" and settings.mixed_precision == "fp16":
            raise ConfigError(messages.FP16_ON_CPU)
        threads = settings.threads
        if threads == "auto" and (threads := exported_threads()) is None:
            threads = self._cpus(kind, 1)
        return kind, threads

    def shape(self, trial: Trial) -> Shape:
        """What a trial asks Ray for; a ConfigError where the cluster never has it."""
        shape = Shape(trial.world, self._cpus(trial.kind, trial.threads), int(trial.kind == "gpu"))
        self.cluster.check_room(shape)
        return shape

    def _cpus(self, kind: str, threads: int) -> int:
        """CPUs of each process."""
        if self.cpus_per_process != "auto":
            return int(self.cpus_per_process)
        return self.cluster.cpus_per_gpu if kind == "gpu" else threads
