"""Hydra's launcher for sweeps on SLURM. Hydra imports this at every start, so it imports nothing heavy itself."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins import local_launcher


class SlurmLauncher(local_launcher.LocalLauncher):
    """Submits the trials of a sweep as one job array; the settings are those of its YAML file."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check every trial, then submit those that are neither done nor under way.

        Returns:
            For each trial the metric that counts, where it is known: a sweeper that optimises it needs `wait`.

        Raises:
            ConfigError: A setting is wrong, or SLURM refuses; nothing has been submitted.
        """
        from launcher.core.errors import ConfigError
        from launcher.slurm.job_array import ArrayOptions, submit_sweep

        if self.config is None or "cluster" not in self.config:
            raise ConfigError("cluster: your train.yaml has none; add `- cluster: default` to its defaults.")
        cluster: Any = OmegaConf.to_container(self.config.cluster, resolve=True)
        options = ArrayOptions(**self.plain_options(), cluster=cluster)
        return [
            self.result(trial, JobStatus.COMPLETED if trial.state == "finished" else JobStatus.UNKNOWN)
            for trial in submit_sweep(self.task, self.config, job_overrides, initial_job_idx, options)
        ]
