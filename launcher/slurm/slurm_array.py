"""The jobs of any Hydra application as one SLURM job array: `hydra/launcher=slurm_array`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.utils import JobReturn

from launcher.core.errors import ConfigError
from launcher.slurm.job_array import ArrayOptions, submit_rest
from launcher.sweep.hydra_sweep import Application, HydraSweep

ONE_PROCESS = ("nodes", "ntasks", "ntasks_per_node")  # what Hydra calls a job is one call of a function


@dataclass
class JobArrayOptions(ArrayOptions):
    """The settings of hydra/launcher=slurm_array, and of those of conf/hydra/launcher/slurm.yaml that it has not."""

    resume: bool

    SCHEMA = "SlurmArray"
    OPTION, SECTION = "slurm_array", "hydra.launcher.sbatch"

    def check(self) -> None:
        """See LauncherOptions."""
        for name in ONE_PROCESS:
            if self.cluster.get(name) not in (None, 1):
                raise ConfigError(
                    f"{self.SECTION}.{name}={self.cluster[name]}: must be 1, since a job of Hydra is one process."
                )
        self.cluster |= dict.fromkeys(("nodes", "ntasks_per_node"), 1)
        super().check()

    def place(self, settings: object) -> tuple[str, int | str]:
        """See LauncherOptions: its node will tell."""
        return "slurm", 1


def launch(
    application: Application, options: JobArrayOptions, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Submit the jobs that have neither finished nor are under way, the number of the first being `first`.

    Returns:
        What each job returned, of those that have finished, and with `wait` of all; none with `dry_run`.

    Raises:
        ConfigError: Something is wrong, or SLURM refuses; nothing has been submitted.
        SystemExit: It was asked to stop while it waited; the jobs go on.
    """
    sweep = HydraSweep(application, options, options.resume)
    with sweep.stopping():
        list(sweep.compose(job_overrides, first))
        submitted = submit_rest(sweep, options)
    return [] if submitted is None else sweep.returned()
