"""What the parent of a sweep's processes imports once, before it forks them: they are ready in 0.05 s instead of 4 s.

It touches no device and reads no file of a user's. What a run would import later by itself is here too.
"""

import contextlib
import importlib
import io
import os
import pkgutil
import sys
import traceback

with contextlib.suppress(OSError):
    os.setsid()  # what a terminal or `timeout` sends to the whole group, the executor passes on
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else a question for GPUs starts the driver, which a fork breaks
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
    os.environ.pop(name, None)  # of the sweep's own launch: some modules look when they are imported

try:
    for name in (
        "torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "accelerate", "safetensors.torch", "jinja2",
        "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "rich.live",
        "rich.table", "launcher.train",
    ):  # fmt: skip
        importlib.import_module(name)

    # All rooms that a run uses: some of their modules it imports by name, or late. Those that lack their package will
    # say so then.
    import launcher

    for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
        if not module.name.startswith(("launcher.__main__", "launcher.commands", "launcher.slurm")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)

    # A first picture finds fonts and loads image formats: 0.3 s of each run otherwise.
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().plot([0, 1], [0, 1], label="x")
    figure.axes[0].legend()
    for kind in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=kind)
except BaseException:
    traceback.print_exc()  # multiprocessing would hide it
    sys.stderr.flush()
