"""Errors of libraries, understood."""

import pytest
import torch

from launcher.core.errors import BrokenFile, Explained, explained_kernels, is_out_of_memory


def test_any_other_error_stays_as_it_is():
    with pytest.raises(RuntimeError, match=r"^shapes$") as raised, explained_kernels():
        raise RuntimeError("shapes")
    assert not isinstance(raised.value, Explained)
    said = r"median CUDA with indices output has .* or use device=cpu\.$"
    with pytest.raises(Explained, match=said), explained_kernels("use device=cpu"):
        raise RuntimeError("median CUDA with indices output does not have a deterministic implementation, but you set")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
    ],
)
def test_every_library_is_understood_that_has_no_memory(text):
    assert is_out_of_memory(RuntimeError(text)) and not is_out_of_memory(ValueError(text))
    assert is_out_of_memory(torch.OutOfMemoryError("of any words"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_real_allocation_that_fails_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_broken_file_is_told_without_the_process_that_read_it():
    """A DataLoader sends the traceback of its process as the message of the same type of error."""
    sent = "Caught BrokenFile in process 3.\nTraceback ...\nlauncher.core.errors.BrokenFile: a.png: no\n  image"
    assert BrokenFile(sent).in_short() == "a.png: no image. Mend it, or take it out."
