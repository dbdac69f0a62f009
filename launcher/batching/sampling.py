"""Class-balanced sampling as a pure function of (seed, epoch, position)."""

from typing import TYPE_CHECKING

import numpy as np

from launcher.batching.keys import derive, derive_each
from launcher.batching.permutation import permute
from launcher.core.errors import ConfigError

if TYPE_CHECKING:
    from launcher.data.source import Data

CLASSES = 16  # beside the purposes in keys.py


class Balanced:
    """Which sample stands at a position of an epoch in which every class comes equally often.

    Of the n positions of an epoch each of the k classes gets n / k, to within one, in an order that a keyed permutation
    names. A class goes through its samples in cycles that run on over the epochs, each in an order of its own: those of
    a small class come several times an epoch, equally often to within one; of a large class each epoch takes the next
    ones. Any position is found in constant time.

    Args:
        data: For the labels of its training split. A class without a sample there is left out.
        seed: Of the run.

    Raises:
        ConfigError: The task has no classes, or the labels are not known without reading every sample.
    """

    def __init__(self, data: "Data", seed: int) -> None:
        targets = data.train.targets
        if data.task != "classification" or targets is None or targets.dim() != 1:
            why = f"is a {data.task} task" if data.task != "classification" else "does not tell one label per sample"
            raise ConfigError(f"sampling=balanced: data={data.name} {why}. Use sampling=shuffle.")
        labels = targets.cpu().numpy()
        counts = np.bincount(labels)
        self.seed, self.size = seed, len(labels)
        self._sizes = counts[counts > 0]
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._members = np.argsort(labels, kind="stable")  # the samples, class by class
        self._quota = -(-self.size // len(self._sizes))

    def draw(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """What stands at positions [n] in 0..size-1 of an epoch, from 0.

        Returns:
            [n] int64: the sample number plus `size` times how often its class began anew in this epoch, so that a
            sample that comes again is augmented in another way.
        """
        classes = len(self._sizes)
        key = derive(self.seed, CLASSES, epoch)
        turn, place = np.divmod(permute(positions, self.size, key), classes)
        chosen = permute(place, classes, derive(key, classes))  # else the first classes would always get the one more
        sizes, begun = self._sizes[chosen], epoch * self._quota
        cycle, member = np.divmod(begun + turn, sizes)
        keys = derive_each(np.full(len(chosen), derive(self.seed, CLASSES), dtype=np.uint64), chosen, cycle)
        sample = self._members[self._starts[chosen] + permute(member, sizes, keys)]
        return sample + self.size * (cycle - begun // sizes)
