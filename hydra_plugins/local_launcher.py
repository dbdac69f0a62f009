"""Hydra launcher for `-m`: each grid point in processes of its own. Hydra imports it at every start: no torch."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger("launcher")


class LocalLauncher(Launcher):
    """Runs the points one after the other on this machine."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra with what `launch` will need."""
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check every point, then run them.

        Raises:
            ConfigError: A point's settings are wrong; none has been started.
        """
        from launcher import config
        from launcher.errors import ConfigError

        assert self.config is not None and self.hydra_context is not None
        points = []
        for index, overrides in enumerate(job_overrides, initial_job_idx):
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            composed.hydra.job.id = composed.hydra.job.num = index
            directory = Path(composed.hydra.sweep.dir) / (str(composed.hydra.sweep.subdir) or str(index))
            settings: Any = OmegaConf.to_container(config.without_hydra(composed), resolve=True)
            try:
                config.check_settings(settings)
            except ConfigError as error:
                raise ConfigError(f"point {index} ({' '.join(overrides)}): {error}") from error
            points.append((overrides, directory))
        print(f"grid       {len(points)} runs in {self.config.hydra.sweep.dir}", flush=True)
        return [self._run(index, *point) for index, point in enumerate(points, initial_job_idx)]

    def _run(self, index: int, overrides: Sequence[str], directory: Path) -> JobReturn:
        from launcher import config

        assert self.config is not None
        print(f"point {index}    {' '.join(overrides) or '(defaults)'}", flush=True)
        status = subprocess.run(
            [*_interpreter(), *_config_dir(self.config), *overrides, config.directory_override(directory)],
            env=_environment(),
        ).returncode
        print(f"point {index}    " + ("finished" if status == 0 else f"FAILED with exit status {status}"), flush=True)
        result = JobReturn(overrides=overrides)
        result.status = JobStatus.COMPLETED  # of a failed one the sweeper would raise the result, which is no exception
        result.return_value = status
        return result


def _interpreter() -> list[str]:
    """How to start one point: on as many devices as the grid itself was launched with."""
    from launcher import train

    devices = int(os.environ.get("WORLD_SIZE", "1"))
    if devices == 1:
        return [sys.executable, train.__file__]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(devices),
        train.__file__,
    ]


def _environment() -> dict[str, str]:
    """The environment without the ranks of the grid's own launch."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    prefixes = ("TORCHELASTIC_", "GROUP_", "ROLE_", "ACCELERATE_")
    return {k: v for k, v in os.environ.items() if k not in ours and not k.startswith(prefixes)}


def _config_dir(config: DictConfig) -> list[str]:
    sources = config.hydra.runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    return ["--config-dir", own[0]] if own else []
