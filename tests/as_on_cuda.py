"""Operations that have no deterministic kernel on CUDA, refused on a CPU as they would be there.

torch looks whether deterministic kernels are asked for where a kernel of CUDA begins
(aten/src/ATen/Context.cpp, alertNotDeterministic). `AsOnCuda` looks wherever an operation is called, on any device. The
list is that of the docstring of torch.use_deterministic_algorithms in torch 2.14, with which a test compares it; the
names are those in libtorch_cuda.so.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Operation: how CUDA names it, and as what the documentation knows it.
REFUSED = {
    aten._adaptive_avg_pool2d_backward: ("adaptive_avg_pool2d_backward_cuda", "AdaptiveAvgPool2d"),
    aten._adaptive_avg_pool3d_backward: ("adaptive_avg_pool3d_backward_cuda", "AdaptiveAvgPool3d"),
    aten.adaptive_max_pool2d_backward: ("adaptive_max_pool2d_backward_cuda", "AdaptiveMaxPool2d"),
    aten.avg_pool3d_backward: ("avg_pool3d_backward_cuda", "AvgPool3d"),
    aten.fractional_max_pool2d_backward: ("fractional_max_pool2d_backward_cuda", "FractionalMaxPool2d"),
    aten.fractional_max_pool3d_backward: ("fractional_max_pool3d_backward_cuda", "FractionalMaxPool3d"),
    aten.max_pool3d_with_indices_backward: ("max_pool3d_with_indices_backward_cuda", "MaxPool3d"),  # until torch 2.13
    aten.max_unpool2d: ("max_unpooling2d_forward_out", "MaxUnpool2d"),  # of MaxUnpool1d, too
    aten.max_unpool3d: ("max_unpooling3d_forward_out", "MaxUnpool3d"),
    aten.upsample_linear1d_backward: ("upsample_linear1d_backward_out_cuda", "interpolate"),
    aten.upsample_bilinear2d_backward: ("upsample_bilinear2d_backward_out_cuda", "interpolate"),
    aten.upsample_bicubic2d_backward: ("upsample_bicubic2d_backward_out_cuda", "interpolate"),
    aten.upsample_trilinear3d_backward: ("upsample_trilinear3d_backward_out_cuda", "interpolate"),
    aten._upsample_bilinear2d_aa_backward: ("upsample_gen2d_aa_backward_out_cuda", "interpolate"),
    aten._upsample_bicubic2d_aa_backward: ("upsample_gen2d_aa_backward_out_cuda", "interpolate"),
    aten.reflection_pad1d_backward: ("reflection_pad1d_backward_out_cuda", "ReflectionPad1d"),
    aten.reflection_pad2d_backward: ("reflection_pad2d_backward_cuda", "ReflectionPad2d"),
    aten.reflection_pad3d_backward: ("reflection_pad3d_backward_out_cuda", "ReflectionPad3d"),
    aten.nll_loss2d_forward: ("nll_loss2d_forward_out_cuda_template", "NLLLoss"),  # of [n, k, ...]; not of [n, k]
    aten._ctc_loss_backward: ("ctc_loss_backward_gpu", "CTCLoss"),
    aten._embedding_bag_dense_backward: ("embedding_bag_backward_cuda_max", "EmbeddingBag"),
    aten.put: ("put_", "put_"),
    aten.put_: ("put_", "put_"),
    aten.histc: ("_histc_cuda with floating point input", "histc"),
    aten.bincount: ("_bincount_cuda", "bincount"),
    aten.median: ("median CUDA with indices output", "median"),
    aten.nanmedian: ("median CUDA with indices output", "median"),
    aten.kthvalue: ("kthvalue CUDA", "kthvalue"),  # of older torch
    aten.grid_sampler_2d_backward: ("grid_sampler_2d_backward_cuda", "grid_sample"),
    aten.grid_sampler_3d_backward: ("grid_sampler_3d_backward_cuda", "grid_sample"),
    aten.scatter_reduce: ("scatter_reduce_cuda_prod_", "scatter_reduce"),
    aten.scatter_reduce_: ("scatter_reduce_cuda_prod_", "scatter_reduce"),
    aten.index_reduce: ("index_reduce_cuda", "index_reduce"),
    aten.index_reduce_: ("index_reduce_cuda", "index_reduce"),
}
# Only some calls of these are: arguments to whether.
CONDITIONS = {
    aten.histc: lambda values, *_: values.is_floating_point(),
    aten.bincount: lambda values, weights=None, *_: weights is not None,
    aten.median: lambda values, *dim: bool(dim),
    aten.nanmedian: lambda values, *dim: bool(dim),
    aten._embedding_bag_dense_backward: lambda *arguments: arguments[7] == 2,  # mode: max
    aten.scatter_reduce: lambda *arguments: arguments[4] == "prod",
    aten.scatter_reduce_: lambda *arguments: arguments[4] == "prod",
}


class AsOnCuda(TorchDispatchMode):
    """Refuses, while deterministic kernels are asked for, what CUDA would refuse, in the same words.

    Attributes:
        seen: Names of the operations that were called, backwards among them.
    """

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        self.seen.add(str(packet))
        listed = packet in REFUSED and CONDITIONS.get(packet, lambda *_: True)(*args)
        if listed and torch.get_deterministic_debug_mode() == 2:
            raise RuntimeError(
                f"{REFUSED[packet][0]} does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation ..."
            )
        return function(*args, **(kwargs or {}))
