"""The exceptions for what a user can put right."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# How libraries say that memory was not enough: torch of a device, of the host and of CUDA's own calls, NCCL ("Cuda
# failure 2 'out of memory'"); cuBLAS, cuSPARSE, cuSOLVER, cuFFT, cuDNN 8 (ALLOC_FAILED), 9 (DEVICE_ALLOCATION_FAILED).
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory|can't allocate memory|ALLOC(ATION)?_FAILED")


class BrokenFile(ValueError):
    """A file among a user's data cannot be read, which shows when its turn comes; the message names it in a line."""

    def in_short(self) -> str:
        """The message, without the traceback that a process that loads sends before it, and what to do."""
        return f"{' '.join(str(self).rpartition('BrokenFile: ')[2].split())}. Mend it, or take it out."


class Explained(RuntimeError):
    """A failure of which a sentence tells more than a traceback, and what to do: its message."""


class ConfigError(ValueError):
    """The user's input is wrong: the run ends with exit status 2 and this message alone, no traceback.

    The message names the setting, says what is wrong with it and what would be right.
    """


@contextmanager
def explained_kernels(
    way_out: str = "say deterministic=false, with which the bits may change from run to run",
) -> Iterator[None]:
    """Say in a sentence that an operation has no kernel that gives the same bits again, which torch finds out in it.

    Args:
        way_out: What to do, beside taking another layer.

    Raises:
        Explained: One has none.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(.+?) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise Explained(
            f"deterministic=true: torch's {found[1]} has no kernel on this device that gives the same bits again. Take "
            f"another layer or loss in the place of the one that needs it, or {way_out}."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory was not enough, whichever library says so, in its own words."""
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}") is not None
