"""Hydra's sweeper and launchers for `-m`. Hydra imports this at every start, so it imports nothing heavy itself."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launcher.config.hydra_api import basic_sweeper

BasicSweeper: Any = basic_sweeper()


class GridSweeper(BasicSweeper):
    """Every combination of what is swept, as Hydra's own sweeper makes them, and lists in step, repeats, files.

    Hydra's composes every trial twice, writes files before it has checked them, and gives up all where one failed.
    """

    def __init__(self, max_batch_size: Any, params: dict[str, str] | None, **options: Any) -> None:
        super().__init__(max_batch_size=max_batch_size, params=params)
        self.options = options

    def sweep(self, arguments: list[str]) -> Any:
        """Hand all trials to the launcher.

        Raises:
            ConfigError: There is none, or more than hydra.launcher.max_points, or they do not go together.
            HydraException: A setting is wrong.
        """
        from launcher.config.checks import check_options
        from launcher.sweep.grid import Grid, GridOptions
        from launcher.sweep.sweep import check_count

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        parsed = parse(self, arguments)
        most = self.config.hydra.launcher.get("max_points", 1000)
        check_options({"max_points": most}, "SweepLimit")
        options = GridOptions(max_batch_size=self.max_batch_size, **plain(self.options))
        options.check()
        grid = Grid(parsed, options)
        check_count(len(grid), most)  # before they are made: a hundred thousand would take the memory
        if isinstance(self.launcher, LocalLauncher):  # which sees one batch at a time
            self.launcher.task.swept = grid.varying
        if options.decide is not None:
            from launcher.sweep.decision import Decision

            assert isinstance(self.launcher, LocalLauncher), "multirun.sweep refuses others"
            return self.launcher.follow(lambda sweep: Decision(sweep, grid, options))
        return list(self.launch(grid, options))

    def launch(self, grid: Any, options: Any) -> Iterator[Sequence[JobReturn]]:
        """Hand the trials of a `Grid` to the launcher, batch by batch."""
        assert self.launcher is not None
        trials = list(grid.trials())
        size = options.max_batch_size or len(trials)
        for first in range(0, len(trials), size):
            yield self.launcher.launch(trials[first : first + size], initial_job_idx=first)


class ListSweeper(GridSweeper):
    """The same for any Hydra application, to which it is what Hydra's own sweeper is: hydra/sweeper=lists."""

    def sweep(self, arguments: list[str]) -> Any:
        """Hand all jobs to the launcher.

        Raises:
            CompactHydraException: The settings do not go together. Otherwise what a job of a batch has raised.
        """
        from launcher.core.errors import ConfigError
        from launcher.sweep.grid import Grid, GridOptions

        assert self.config is not None
        options = GridOptions(max_batch_size=self.max_batch_size, decide=None, **plain(self.options))
        try:
            options.check()
            grid = Grid(parse(self, arguments), options)
            if len(grid) == 0:
                raise ConfigError("There is no job: a list or range that is swept is empty.")
        except ConfigError as error:
            raise CompactHydraException(f"error: {error}") from error
        place = Path(str(self.config.hydra.sweep.dir))
        place.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, place / "multirun.yaml")
        returned = []
        for results in self.launch(grid, options):
            for result in results:
                result.return_value  # noqa: B018 - raises what the job has raised
            returned.append(results)
        return returned


class OptunaSweeper(BasicSweeper):
    """A search: Optuna chooses the trials, each by the results of those before; the settings are those of its file."""

    def __init__(self, params: dict[str, str] | None, **options: Any) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.options = options

    def sweep(self, arguments: list[str]) -> Any:
        """Search.

        Raises:
            ConfigError: A setting is wrong, or there is nothing to search; no trial has been started.
        """
        from importlib.metadata import version

        from launcher.core.errors import ConfigError

        assert self.config is not None and self.hydra_context is not None
        try:
            from launcher.sweep.search import Search, SearchOptions
            from launcher.sweep.space import space_of
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"hydra/sweeper=optuna: needs {error.name}, which is not installed: "
                "pip install 'hydra-accelerate-launcher[search]'."
            ) from error
        except ImportError as error:  # as hydra-optuna-sweeper has it
            raise ConfigError(
                f"hydra/sweeper=optuna: needs Optuna 5 or newer, and {version('optuna')} is installed. "
                "Another package's sweeper that takes that one needs an environment of its own."
            ) from error
        parsed = parse(self, arguments)
        assert isinstance(self.launcher, LocalLauncher), "multirun.sweep refuses others"
        space, how = space_of(parsed), SearchOptions(**plain(self.options))
        return self.launcher.follow(lambda sweep: Search(sweep, space, how))


class LocalLauncher(Launcher):
    """Runs the trials of a sweep on the devices of this machine; the settings are those of its YAML file."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.config: DictConfig | None = None
        self.task: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra with what `launch` will need."""
        self.config, self.task = config, task_function
        HydraConfig.instance().set_config(config)  # for what refers to `hydra` in the sweep's own config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check every trial, then run them, or hand them to SLURM.

        Returns:
            For each trial the metric that counts, for sweepers that optimise it.

        Raises:
            ConfigError: A setting is wrong; no trial has been started.
        """
        from launcher.sweep.sweep import Sweep

        options = self.read_options()
        sweep = Sweep(self.task, self.config, options)
        return [self.result(trial) for trial in self.room().run_sweep(sweep, job_overrides, initial_job_idx, options)]

    def follow(self, feed: Callable[[Any], Any]) -> Sequence[JobReturn]:
        """Run the trials of the `Feed` that is made for a `Sweep`; otherwise as `launch`."""
        from launcher.sweep.sweep import Sweep

        options = self.read_options()
        sweep = Sweep(self.task, self.config, options)
        return [self.result(trial) for trial in self.room().run_feed(sweep, feed(sweep), options)]

    def read_options(self) -> Any:
        """The settings of the YAML file, as a `LauncherOptions`."""
        from launcher.sweep.options import LocalOptions

        return LocalOptions(**plain(self.options))

    def room(self) -> Any:
        """The module whose `run_sweep` and `run_feed` run the trials, and return them."""
        from launcher.sweep import local

        return local

    def result(self, trial: Any) -> JobReturn:
        """What Hydra's sweepers get to know of a trial; without `wait` most are not known yet where SLURM runs them."""
        from launcher.sweep.trial_state import State
        from launcher.sweep.trials import metric_of

        result = JobReturn(overrides=trial.overrides, status=JobStatus.COMPLETED)
        if trial.state == State.FAILED:
            self.task.failed.append(trial.label)
            result.status = JobStatus.FAILED
            result.return_value = RuntimeError(f"trial {trial.index} ({trial.label}): {trial.reason}")
            return result
        if trial.kind == "slurm" and trial.state != State.FINISHED:
            result.status = JobStatus.UNKNOWN
        result.return_value = metric_of(trial.path, trial.metric)
        return result


class SlurmLauncher(LocalLauncher):
    """Submits the trials of a sweep as one job array; the settings are those of its YAML file."""

    def read_options(self) -> Any:
        """See LocalLauncher.

        Raises:
            ConfigError: There is no `cluster` in the config.
        """
        from launcher.core.errors import ConfigError
        from launcher.slurm.job_array import ArrayOptions

        if self.config is None or "cluster" not in self.config:
            raise ConfigError("cluster: your train.yaml has none; add `- cluster: default` to its defaults.")
        cluster: Any = OmegaConf.to_container(self.config.cluster, resolve=True)
        return ArrayOptions(**plain(self.options), cluster=cluster)

    def room(self) -> Any:
        """See LocalLauncher."""
        from launcher.slurm import job_array

        return job_array


class RayLauncher(LocalLauncher):
    """Runs the trials of a sweep on a Ray cluster; the settings are those of its YAML file."""

    def read_options(self) -> Any:
        """See LocalLauncher."""
        from launcher.ray_cluster.ray_options import RayOptions

        return RayOptions(**plain(self.options))

    def room(self) -> Any:
        """See LocalLauncher."""
        from launcher.ray_cluster import ray_sweep

        return ray_sweep


def parse(sweeper: Any, arguments: list[str]) -> Any:
    """What a sweeper is to sweep, parsed: its own `params`, and then those of the command line."""
    loader = sweeper.hydra_context.config_loader
    return OverridesParser.create(config_loader=loader).parse_overrides([*sweeper._parse_config(), *arguments])


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The settings of a YAML file, without anything of OmegaConf."""
    return {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()}
