"""Hydra's launcher for grids on SLURM. Hydra imports this at every start, so it imports nothing heavy itself."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins import local_launcher


class SlurmLauncher(local_launcher.LocalLauncher):
    """Submits the points of a grid as one job array; the settings are those of its YAML file."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check every point, then submit those that are neither done nor under way.

        Returns:
            For each point the metric that counts, where it is known: a sweeper that optimises it needs `wait`.

        Raises:
            ConfigError: A setting is wrong, or SLURM refuses; nothing has been submitted.
        """
        from launcher.core.errors import ConfigError
        from launcher.slurm import job_array

        if self.config is None or "cluster" not in self.config:
            raise ConfigError("cluster: your train.yaml has none; add `- cluster: default` to its defaults.")
        cluster: Any = OmegaConf.to_container(self.config.cluster, resolve=True)
        options = job_array.Options(**self.plain_options(), cluster=cluster)
        return [
            self.result(point, JobStatus.COMPLETED if point.state == "finished" else JobStatus.UNKNOWN)
            for point in job_array.submit(self.task, self.config, job_overrides, initial_job_idx, options)
        ]
