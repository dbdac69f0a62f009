"""Floating-point operations: what a sample takes, what a device can do, how many threads that keeps busy."""

from typing import Any

import torch
from torch import Tensor, nn

from launcher.batching.splits import DatasetSplit, TensorSplit
from launcher.batching.stream import first_sample
from launcher.core.compat import tree_map_only
from launcher.training.modes import modes_kept

# Dense matrix products per second that NVIDIA's data sheets state, in 1e12 FLOPs: (float32, as TF32, half). Where they
# give what sparse ones reach (since Hopper), half of it. Of the forms with the most power, but where a name says other.
PEAK = {
    "B200": (75, 1125, 2250),  # Blackwell Architecture Technical Brief, HGX B200
    "H200": (67, 494.5, 989),  # H200 Tensor Core GPU data sheet, SXM
    "H100 PCIe": (51, 378, 756),  # H100 Tensor Core GPU data sheet
    "H100": (67, 494.5, 989),  # the same, SXM
    "A100": (19.5, 156, 312),  # A100 Tensor Core GPU data sheet
    "L40S": (91.6, 183, 362),  # L40S data sheet
    "L4": (30.3, 60, 121),  # L4 Tensor Core GPU data sheet
    "V100": (15.7, 15.7, 125),  # V100 data sheet, SXM2; it has no TF32
    "T4": (8.1, 8.1, 65),  # T4 data sheet; it has no TF32
}
THREAD = 5e6  # operations of a matrix product below which one more thread does not help: docs/performance.md


def peak_flops(device_name: str, mixed_precision: str, float32_matmul_precision: str) -> float | None:
    """Floating-point operations per second that a device can do at most, by its name; None where it is not known.

    With a float32_matmul_precision other than highest, float32 is computed as TF32.
    """
    for name, (single, tf32, half) in PEAK.items():
        if all(word in device_name.replace("-", " ").split() for word in name.split()):
            in_float32 = single if float32_matmul_precision == "highest" else tf32
            return 1e12 * (in_float32 if mixed_precision == "no" else half)
    return None


def flops_per_sample(model: nn.Module, inputs: Any, samples: int) -> float:
    """Operations to train on one sample, given the inputs of some: matrix products and convolutions alone.

    A backward costs twice its forward (Chowdhery et al. 2022, PaLM, appendix B).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with modes_kept(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(inputs)  # no buffers change
    return 3 * counter.get_total_flops() / samples


def useful_threads(model: nn.Module, split: TensorSplit | DatasetSplit, samples: int) -> int | None:
    """How many CPU threads help a model: as many as have THREAD operations each in an average matrix product.

    More of them wait for each other most of the time, and on a machine that others use for a long time. Whoever needs
    another number sets it; it is a function of the settings alone, since the last bits depend on it. A forward of so
    many samples without memory tells the operations; None where the model does not work so.
    """
    from torch.utils.flop_counter import FlopCounterMode

    nowhere = {name: one.to("meta") for name, one in (*model.named_parameters(), *model.named_buffers())}
    inputs = tree_map_only(
        Tensor, lambda one: one.new_empty((samples, *one.shape[1:]), device="meta"), first_sample(split)[0]
    )
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whose operations are not counted
    try:
        with modes_kept(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model.eval(), nowhere, (inputs,))
    except Exception:
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    matrices = sum(parameter.ndim > 1 for parameter in model.parameters())
    return max(1, int(counter.get_total_flops() / max(matrices, 1) / THREAD)) if counter.get_total_flops() else None
