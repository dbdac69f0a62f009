"""How the parent of a sweep's processes imports what they need, before it forks them."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

PROGRAM, IMPORTING = "LAUNCHER_PROGRAM", "LAUNCHER_IMPORTING"  # which program; set while that is imported
UNGUARDED = (
    "The program runs its function under @hydra.main also where it is only imported. Put that call under "
    '`if __name__ == "__main__":`.'
)


@contextlib.contextmanager
def preloading() -> Iterator[None]:
    """Prepare the process for being forked, and print what an import raises: multiprocessing would hide it."""
    with contextlib.suppress(OSError):
        os.setsid()  # what a terminal or `timeout` sends to the whole group, the executor passes on
    # Else torch's question for GPUs starts the driver, which a fork breaks.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)  # of the sweep's own launch: some modules look when they are imported
    try:
        yield
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
