"""Where messages of the log go: as hydra/job_logging and hydra.verbose say, for all loggers. Rank 0 alone logs."""

import logging
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.composed import Composed
from launcher.config.tree import map_texts
from launcher.core.errors import ConfigError


class Log:
    """The log of a process, from its start; ConfigError: Python's logging cannot be set up so.

    What comes before there is a run directory, as from a person's data source, is shown at once and kept for the file.
    """

    def __init__(self, composed: Composed, rank: int) -> None:
        self._composed = composed
        self._early = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
        if rank == 0:
            self._configure(None)
            logging.getLogger().addHandler(self._early)

    def begin_file(self, directory: Path) -> None:
        """Log to files as well, where the config names some: train.log in the run directory."""
        self._configure(directory)
        logging.getLogger().removeHandler(self._early)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                for record in self._early.buffer:
                    handler.handle(record)

    def _configure(self, directory: Path | None) -> None:
        verbose = self._composed.hydra.get("verbose", False)
        if not (isinstance(verbose, bool | str) or OmegaConf.is_list(verbose)):
            raise ConfigError(f"hydra.verbose={verbose}: must be true, false, or names of loggers: [my.module].")
        hydra: Any = OmegaConf.to_container(self._composed.hydra)
        hydra["runtime"]["output_dir"] = str(directory)
        # ${hydra:...} is for a program that Hydra itself has started
        hydra["job_logging"] = map_texts(hydra["job_logging"], lambda text: text.replace("${hydra:", "${hydra."))
        whole = OmegaConf.create(self._composed.plain() | {"hydra": hydra})
        try:
            wanted: Any = OmegaConf.to_container(whole.hydra.job_logging, resolve=True)
            if directory is None:
                handlers = wanted.get("handlers") or {}
                handlers |= {
                    name: {"class": "logging.NullHandler"} for name, one in handlers.items() if "filename" in one
                }
            configure_log(OmegaConf.create(wanted), verbose)
        except (HydraException, OmegaConfBaseException, ValueError, KeyError, TypeError, AttributeError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise ConfigError(f"hydra.job_logging: {error}{cause}") from error
