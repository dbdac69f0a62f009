"""Settings of sweeps: those of conf/hydra/launcher and conf/hydra/sweeper, which Hydra keeps beside those of a run."""

from typing import Annotated, Any, Literal

from pydantic import Field

from launcher.config.setting import (
    Auto,
    Count,
    CountOrZero,
    Duration,
    Fraction,
    Mode,
    Range,
    Section,
    Text,
    Words,
    setting,
)


class SweepLimit(Section):
    """How large a sweep may be, whoever launches it."""

    max_points: Count = setting("Consent: a larger sweep is refused.")


class SweepOptions(SweepLimit):
    """What the options of conf/hydra/launcher/ have in common."""

    max_parallel: Count | None = setting("Most trials at once.")
    metric: Text | None = setting("Metric that the comparison is sorted by; null: checkpoint.best.")
    metric_mode: Mode | None = setting("Whether less or more of it is better; null: as its name tells.")


class LocalSweep(SweepOptions):
    """Settings of hydra/launcher=local."""

    devices_per_run: Count | Auto | Range = setting(
        "Processes of a trial, each with a device; of a range more while devices idle, fewer while trials wait."
    )
    trials_per_device: Annotated[int, Field(ge=1, le=64)] | Auto = setting(
        "Trials that share a device; auto: as many as a GPU's memory has room for, by the count of check=true."
    )
    parallel: Count | Auto = setting("Trials at once; auto: as many as there are devices for.")
    max_time_per_run: Duration | None = setting("A trial that takes longer has failed.")


class DevicePool(Section):
    """Settings of hydra/launcher=device_pool, for any Hydra application."""

    devices_per_run: Count = setting("Devices of a job, which is one process.")
    trials_per_device: Annotated[int, Field(ge=1, le=64)] = setting("Jobs that share a device.")
    max_parallel: Count | None = setting("Most jobs at once.")
    max_time_per_run: Duration | None = setting("A job that takes longer has failed.")
    preload: bool = setting("The program is imported once for all jobs, not by each.")
    resume: bool = setting("Jobs that have finished are not run again.")


class SlurmSweep(SweepOptions):
    """Settings of hydra/launcher=slurm."""

    max_requeues: CountOrZero = setting("Times in a row that a trial may come back without a new checkpoint.")
    snapshot: bool = setting("The jobs run a copy of the code as it is now.")
    wait: bool = setting("Shows the trials until all have ended, then compares them.")
    dry_run: bool = setting("Prints the script, asks SLURM whether it would take it, and submits nothing.")


class SlurmArray(Section):
    """Settings of hydra/launcher=slurm_array, for any Hydra application."""

    max_parallel: Count | None = setting("Most jobs at once.")
    max_requeues: CountOrZero = setting("Times in a row that a job may come back.")
    wait: bool = setting("Shows the jobs until all have ended; else Hydra is not told what they return.")
    dry_run: bool = setting("Prints the script, asks SLURM whether it would take it, and submits nothing.")
    resume: bool = setting("Jobs that have finished are not run again.")


class RaySweep(SweepOptions):
    """Settings of hydra/launcher=ray."""

    address: Text = setting("The Ray cluster: auto, local, or host:port of its head.")
    devices_per_run: Count | Auto = setting("Processes of a trial, each with a device.")
    cpus_per_process: Count | Auto = setting("CPUs that Ray keeps for each process.")
    max_time_per_run: Duration | None = setting("A trial that takes longer has failed.")
    snapshot: bool = setting("The trials run a copy of the code as it is now.")


class Grid(Section):
    """Settings of hydra/sweeper=grid."""

    max_batch_size: Count | None = setting("Trials that the launcher gets together; null: all.")
    zip: (
        Annotated[
            list[Annotated[list[Text], Field(min_length=2)]], Words("lists of settings, [[optimizer,optimizer.lr]]")
        ]
        | None
    ) = setting("Settings whose values go in step, not in every combination.")
    seeds: Count | None = setting("Runs of each trial, with seeds from 0 on.")
    decide: Fraction | None = setting(
        "Level at which settings are told apart: seeds are added until they are, at most `seeds`; null: all of them."
    )
    trials: Text | None = setting("A file with the overrides of a trial in each line.")
    conditions: Annotated[list[Text], Words("a list such as ['optimizer.momentum if optimizer=sgd']")] | None = setting(
        "Settings that only some trials have."
    )


class Optuna(Section):
    """Settings of hydra/sweeper=optuna."""

    n_trials: Count = setting("Trials of the search in all; more of them prolong it.")
    timeout: Duration | None = setting("Time after which no trial is begun: seconds, or 90m, 12h; null: no limit.")
    sampler: Literal["tpe", "random", "cmaes", "qmc", "gp"] = setting("Chooses the values, of Optuna's samplers.")
    sampler_options: (
        Annotated[dict[str, Any], Words("arguments of the sampler, such as {multivariate: true}")] | None
    ) = setting("Further arguments of Optuna's class.")
    seed: CountOrZero = setting("Of the sampler.")
    pruner: Literal["none", "asha", "hyperband", "median"] = setting("Ends the worse trials early.")
    min_evaluations: Count = setting("Evaluations of a trial before the pruner first decides.")
    reduction_factor: Annotated[int, Field(ge=2)] = setting("One of so many goes on at a rung of asha and hyperband.")
    brackets: Count = setting("Brackets of hyperband.")
    metrics: Annotated[list[Text], Field(min_length=1)] | None = setting(
        "What is searched for, one or several; null: hydra.launcher.metric, else checkpoint.best."
    )
    from_sweeps: list[Text] = setting("Directories of finished sweeps that the sampler learns from.")
