"""Which kernels and which workspace torch computes with: how exact, and whether always the same bits."""

import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from launcher.core.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# With these cuBLAS gives the same bits again: torch refuses its products with any other (aten/src/ATen/Context.cpp,
# checkCuBLASConfigDeterministic). The first, of 32 MiB, is what torch takes on Hopper anyway.
FIXED_WORKSPACES = (":4096:8", ":16:8")


def choose_workspace(environment: MutableMapping[str, str], deterministic: bool, on_cpu: bool) -> None:
    """Fix the workspace of cuBLAS, which it reads when CUDA starts, where the same bits are asked for.

    Raises:
        ConfigError: The environment asks for one with which the bits may change, and not on a CPU, which has no use
            for it.
    """
    if deterministic and environment.setdefault(WORKSPACE, FIXED_WORKSPACES[0]) not in FIXED_WORKSPACES and not on_cpu:
        raise ConfigError(
            f"{WORKSPACE}={environment[WORKSPACE]} in the environment: with deterministic=true it must be "
            f"{' or '.join(FIXED_WORKSPACES)}. Unset it, or say deterministic=false."
        )


def choose_numerics(deterministic: bool, float32_matmul_precision: str) -> None:
    """Choose among torch's kernels, for the rest of the process.

    Args:
        deterministic: Only kernels that give the same bits again; torch raises where an operation has none on its
            device (errors.explained_kernels). Attention and embeddings have them: cuDNN's attention is left out, the
            backwards of flash and memory-efficient attention and of nn.Embedding take another way
            (transformers/cuda/sdp_utils.cpp, check_cudnn_deterministic; attention_backward.cu). With warn_only the
            attention would stay as it is.
        float32_matmul_precision: highest, high or medium, as torch.set_float32_matmul_precision takes it; anything but
            highest lets convolutions and recurrent layers use TF32 too, which torch would by itself.
    """
    import torch

    # The same as use_deterministic_algorithms(), which imports torch's compiler (1.2 s) to set an option of it. A run
    # that compiles its model asks for that: Trainer.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # Else each torch.empty is filled with NaN: a kernel more for each on a GPU, and no bit differs by it, but for code
    # that reads what nobody wrote. A step on a CPU took 1.00 to 1.01 times as long with it (mlp, cnn, transformer).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    with warnings.catch_warnings():  # torch 2.9 told of newer names, which are refused where anyone reads the older
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.set_float32_matmul_precision(float32_matmul_precision)
        torch.backends.cudnn.allow_tf32 = float32_matmul_precision != "highest"


@contextmanager
def in_any_order() -> Iterator[None]:
    """Lift the deterministic mode, for sums that are the same in any order: of ones, or on the host in one thread.

    On CUDA the mode refuses histc, which adds up ones by atomic operations. And where it is on, torchmetrics counts n
    samples into m bins by a table of n times m on any device (utilities/data.py, _bincount): 33 GB for 4,096 samples of
    1,001 classes.
    """
    import torch

    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
