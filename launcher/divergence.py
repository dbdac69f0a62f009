"""A loss or gradient that is NaN or infinite: never saved; the run stops, or goes back and leaves the batch out."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np


class Diverged(RuntimeError):
    """Training has diverged.

    Args:
        step: The update at which it was seen first (0-based: updates done before it).
        lr: Learning rate of the update before which it was noticed.
    """

    def __init__(self, step: int, lr: float) -> None:
        super().__init__(step, lr)
        self.step, self.lr, self.samples = step, lr, np.zeros(0, dtype=np.int64)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.samples[:10].tolist()))
        more = f" and {len(self.samples) - 10} more" if len(self.samples) > 10 else ""
        return (
            f"training diverged: the loss or gradient of update {self.step + 1} is NaN or infinite "
            f"(learning rate {self.lr:g}; samples {shown}{more}). Nothing of it was saved. "
            "Lower optimizer.lr, set clip_grad_norm, or use divergence.action=rollback to leave the batch out."
        )


@dataclass
class Rollbacks:
    """What was left out so far: kept in a file of its own, since going back to a checkpoint must not forget it.

    Attributes:
        count: How often the run went back.
        skipped: The updates whose batches are left out.
        careful_until: Up to this update every loss and gradient is looked at before it is applied.
    """

    count: int = 0
    skipped: list[int] = field(default_factory=list)
    careful_until: int = 0

    @classmethod
    def read(cls, file: Path) -> "Rollbacks":
        """Those of a run directory; none where the file is missing."""
        return cls(**json.loads(file.read_text())) if file.exists() else cls()

    def go_back(self, step: int) -> None:
        """Count a return to the last checkpoint; the way back up to the bad update is gone with care.

        The update before it is suspected as well: weights that a bad gradient has spoilt show in the loss one later.
        """
        self.count += 1
        self.careful_until = max(self.careful_until, step + 1)

    def as_dict(self) -> dict[str, int | list[int]]:
        """The content of the file."""
        return asdict(self)
