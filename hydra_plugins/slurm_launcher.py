"""Hydra's launcher for sweeps on SLURM. Hydra imports this at every start, so it imports nothing heavy itself."""

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import OmegaConf

from hydra_plugins import local_launcher


class SlurmLauncher(local_launcher.LocalLauncher):
    """Submits the trials of a sweep as one job array; the settings are those of its YAML file."""

    def how(self) -> tuple[Callable[..., Sequence[Any]], Any]:
        """See LocalLauncher.

        Raises:
            ConfigError: There is no `cluster` in the config.
        """
        from launcher.core.errors import ConfigError
        from launcher.slurm.job_array import ArrayOptions, submit_sweep

        if self.config is None or "cluster" not in self.config:
            raise ConfigError("cluster: your train.yaml has none; add `- cluster: default` to its defaults.")
        cluster: Any = OmegaConf.to_container(self.config.cluster, resolve=True)
        return submit_sweep, ArrayOptions(**self.plain_options(), cluster=cluster)
