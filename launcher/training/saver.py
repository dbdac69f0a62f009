"""Checkpoints written in the background, one at a time."""

import logging
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from launcher.core.compat import tree_map_only
from launcher.training.checkpoint import link_best, prune, write_checkpoint

log = logging.getLogger("launcher")


def own_copy(tensor: Tensor) -> Tensor:
    """A copy on the host that nobody else has, and that `Staging` therefore takes as it is."""
    copied: Any = tensor.detach().to("cpu", copy=True)
    copied.is_own = True
    return copied


class Staging:
    """Host memory into which a state is copied once, the same from save to save.

    Copies from a GPU run as the device comes to them, in order with the updates before and after, and the training
    thread waits for none of them: that takes pinned memory. Who reads them waits once, for what `copy` returns: for the
    place in the device's queue that `record` has marked; without one they are there at once, as a CPU's are.
    """

    def __init__(self, pinned: bool = False, record: Callable[[], Any] | None = None) -> None:
        self.pinned, self.record = pinned, record
        self._kept: dict[Any, list[Tensor]] = {}

    @staticmethod
    def for_device(device: torch.device) -> "Staging":
        """For the tensors of a device; where it is a CPU, nothing is queued and nothing pinned."""
        if device.type != "cuda":
            return Staging()
        return Staging(True, lambda: torch.cuda.current_stream(device).record_event())

    def copy(self, tree: Any) -> tuple[Any, Callable[[], None]]:
        """A copy of a pytree on the host, tensors contiguous and untied, and what to call before they are read.

        The copies that the call before has made may not be in use any more.
        """
        before, self._kept = self._kept, defaultdict(list)

        def put(tensor: Any) -> Tensor:
            if getattr(tensor, "is_own", False):
                return tensor.contiguous()
            kind = tensor.dtype, tensor.shape
            buffers = before.get(kind)
            buffer = buffers.pop() if buffers else torch.empty(kind[1], dtype=kind[0], pin_memory=self.pinned)
            self._kept[kind].append(buffer)
            return buffer.copy_(tensor.detach(), non_blocking=True)

        copied = tree_map_only(Tensor, put, tree)
        before.clear()  # what is of no shape any more, such as the losses since the last log line
        return copied, (lambda: None) if self.record is None else self.record().synchronize


class Saver:
    """Writes checkpoints in the background, one at a time.

    It keeps the `keep` newest beside the best, and raises after more than `max_failures` failures in a row.
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

        The checkpoints of the steps `best` are kept whatever their age. `sync` brings to the disk what this one
        counts on; where it raises OSError the save has failed.

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
        """Wait until nothing is being written; raises OSError after more than max_failures failures in a row."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.failures > self.max_failures:
            raise OSError(f"{self.failures} saves in a row failed (checkpoint.max_failures={self.max_failures})")

    def close(self) -> None:
        """Wait for the last save; raises OSError where it failed, since nothing else would make up for it."""
        self.wait()
        if self.failures:
            raise OSError("the last checkpoint could not be saved. The same command goes on from the one before it.")

    def _write(self, step: int, copied: Any, arrived: Callable[[], None], best: Collection[int]) -> None:
        begun = time.perf_counter()
        try:
            arrived()
            model, state = copied
            written = write_checkpoint(self.directory, step, model, state)
            link_best(self.directory, written, state["progress"]["best_step"])
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
