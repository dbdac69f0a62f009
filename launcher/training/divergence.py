"""A loss or gradient that is NaN or infinite: never saved; the run stops, or goes back and leaves the batch out."""

import json
from pathlib import Path

import numpy as np

from launcher.core.errors import ConfigError
from launcher.core.files import write_json


class Diverged(RuntimeError):
    """Training has diverged: first seen at update `step` (0-based), noticed after one of learning rate `lr`."""

    def __init__(self, step: int, lr: float) -> None:
        super().__init__(step, lr)
        self.step, self.lr, self.samples, self.broken = step, lr, np.zeros(0, dtype=np.int64), False
        self.left_out = 0  # batches of this run so far

    def __str__(self) -> str:
        wrong = self.what()
        leave = "use divergence.action=rollback to leave the batch out"
        if self.left_out:
            leave = f"allow more than divergence.max_rollbacks={self.left_out} batches to be left out"
        mend = "Mend the samples" if self.broken else "Lower optimizer.lr, set clip_grad_norm"
        return f"{wrong} {mend}, or {leave}."

    def what(self) -> str:
        """What has happened, without what to do about it."""
        shown = ", ".join(map(str, self.samples[:10].tolist()))
        more = f" and {len(self.samples) - 10} more" if len(self.samples) > 10 else ""
        if self.broken:
            wrong = f"the inputs of update {self.step + 1} hold NaN or infinity (samples {shown}{more})."
        else:
            wrong = (
                f"training diverged: the loss or gradient of update {self.step + 1} is NaN or infinite "
                f"(learning rate {self.lr:g}; samples {shown}{more})."
            )
        return f"{wrong} Nothing of it was saved."


class Rollbacks:
    """What was left out so far: kept in a file of its own, since going back to a checkpoint must not forget it."""

    def __init__(self, file: Path | None = None, writes: bool = False) -> None:
        self._file, self._writes = file, writes
        kept = {}
        if file is not None and file.exists():
            try:
                kept = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:  # the run would be another without what it says
                raise ConfigError(
                    f"{file} cannot be read ({error}): it names the batches left out. Restore it."
                ) from error
        self.count: int = kept.get("count", 0)  # how often the run went back
        self.skipped: list[int] = kept.get("skipped", [])  # the updates whose batches are left out
        self.careful_until: int = kept.get("careful_until", 0)  # losses and gradients of updates before are looked at

    def go_back(self, step: int) -> None:
        """Count a return to the last checkpoint; the way up to the bad update is gone with care."""
        self.count += 1
        self.careful_until = max(self.careful_until, step + 1)
        self._write()

    def skip(self, step: int) -> None:
        """Leave the batch of this update out from now on."""
        self.skipped.append(step)
        self._write()

    def _write(self) -> None:
        if self._writes and self._file is not None:
            kept = {"count": self.count, "skipped": self.skipped, "careful_until": self.careful_until}
            write_json(self._file, kept)
