"""How many processes load the samples of a split."""

import io
import logging
import pickle
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from torch import Tensor

from launcher.batching.generators import generators_kept
from launcher.batching.splits import Split, TensorSplit
from launcher.distributed.threads import share_of_cores

log = logging.getLogger("launcher")

TRIED = 16  # samples, or batches of a dataset that gives whole ones, that are read to learn how long one takes
PATIENCE = 0.5  # seconds after which no more of them are read
WORTH = 1e-3  # seconds: what takes less to read is not worth sending from one process to another
MOST = 8  # processes that `auto` starts, of each kind of samples


def choose_workers(workers: int | str, split: Split, size: int) -> int:
    """Processes that load samples of a split in batches of a size: the number given, or what `auto` means.

    None where a batch is read in less time than it takes to send it from one process to another, or where the dataset
    cannot be sent to one; else one per core of this process's share, at most 8. A few samples are timed, in a copy as
    a worker would get it, and once for each split. The result of a run does not depend on the number.
    """
    if workers != "auto":
        return int(workers)
    if isinstance(split, TensorSplit):
        return 0
    if split.workers is None:
        try:
            dataset, _ = as_a_worker_gets_it((split.dataset, split.collate))
        except Exception as error:
            split.workers, why = 0, f"the dataset cannot be sent to another process: {error}"
        else:
            with generators_kept():
                seconds = _seconds_a_batch(dataset, size)
            split.workers = 0 if seconds < WORTH else min(MOST, share_of_cores())
            why = f"to read a batch of {size} takes {1000 * seconds:.3g} ms"
        log.info(
            "loading    by %s: %s", f"{split.workers} processes" if split.workers else "the run's own process", why
        )
    return split.workers


def _seconds_a_batch(dataset: Any, size: int) -> float:
    """How long it takes to read one, by some samples from all over a dataset."""
    whole, seconds, began = hasattr(dataset, "__getitems__"), list[float](), time.perf_counter()
    for i in range(TRIED + 1):
        before = time.perf_counter()
        if before - began > PATIENCE and seconds:
            break
        if whole:
            dataset.__getitems__([(i + place * len(dataset)) // size % len(dataset) for place in range(size)])
        else:
            dataset[i * (len(dataset) - 1) // TRIED]
        seconds.append(time.perf_counter() - before)
    seconds = sorted(seconds[1:] or seconds)  # the first may open files and import modules
    return seconds[len(seconds) // 2] * (1 if whole else size)


def as_a_worker_gets_it(thing: Any) -> Any:
    """A copy, made as for a process that loads: what it opens when it is read stays there. Arrays are shared."""
    try:
        sent = io.BytesIO()
        _Sharing(sent, pickle.HIGHEST_PROTOCOL).dump(thing)
        return pickle.loads(sent.getbuffer())
    finally:
        _kept.clear()


_kept: list[Any] = []  # arrays of a dataset that is copied


def _take(number: int) -> Any:
    return _kept[number]


class _Sharing(ForkingPickler):
    """Pickles as for a process, but for arrays, which stay where they are."""

    def reducer_override(self, thing: Any) -> Any:
        """How to make a thing again."""
        if not isinstance(thing, Tensor | np.ndarray):
            return NotImplemented
        _kept.append(thing)
        return _take, (len(_kept) - 1,)
