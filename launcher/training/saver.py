"""Checkpoints written in the background, one at a time."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from launcher.training.checkpoint import prune, write_checkpoint
from launcher.training.staging import Staging

log = logging.getLogger("launcher")


class Saver:
    """Writes checkpoints in the background, one at a time.

    Args:
        directory: Where checkpoints are.
        keep: How many of the newest to keep, beside the best.
        max_failures: Saves in a row that may fail before `save` raises.
        staging: Where the state is copied to; None: as for a CPU.
    """

    def __init__(self, directory: Path, keep: int, max_failures: int, staging: Staging | None = None) -> None:
        self.directory, self.keep, self.max_failures = directory, keep, max_failures
        self.staging = staging or Staging()
        self.failures = 0
        self.seconds = 0.0  # the longest save so far, for who must stop in time
        self._thread: threading.Thread | None = None

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        state: Mapping[str, Any],
        best: Collection[int],
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the state out of device memory and write it in the background.

        Args:
            step: Updates done.
            model: The weights of the eval model by name.
            state: Everything else.
            best: Steps of the checkpoints that are kept whatever their age.
            sync: Brings to the disk what the checkpoint counts on; where it raises OSError the save has failed.

        Raises:
            OSError: More saves in a row failed than max_failures allows.
        """
        self.wait()
        try:
            sync()
        except OSError as error:
            return self._failed(step, error)
        for stale in self.directory.glob(".removing-*"):
            shutil.rmtree(stale, ignore_errors=True)
        arguments = (step, *self.staging.copy((dict(model), dict(state))), best)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: More saves in a row failed than max_failures allows.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.failures > self.max_failures:
            raise OSError(f"{self.failures} saves in a row failed (checkpoint.max_failures={self.max_failures})")

    def close(self) -> None:
        """Wait for the last save, after which nothing else would make up for a failure.

        Raises:
            OSError: It failed.
        """
        self.wait()
        if self.failures:
            raise OSError("the last checkpoint could not be saved. The same command goes on from the one before it.")

    def _write(self, step: int, copied: Any, arrived: Callable[[], None], best: Collection[int]) -> None:
        begun = time.perf_counter()
        try:
            arrived()
            write_checkpoint(self.directory, step, *copied)
            prune(self.directory, self.keep, best)
            self.failures = 0
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
            shutil.rmtree(self.directory / f".making-step_{step:08d}", ignore_errors=True)
            self._failed(step, error)
        except Exception as error:
            self.failures = self.max_failures + 1
            log.error("SAVING FAILED at step %d: %s: %s", step, type(error).__name__, error)
        self.seconds = max(self.seconds, time.perf_counter() - begun)

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        log.error("SAVING FAILED at step %d: %s. The checkpoints before it are untouched.", step, error)
