"""What the parent of a grid's processes imports once, before it forks them: they are ready in 0.05 s instead of 4 s.

It touches no device and reads no file of a user's. What a run would import later by itself is here too.
"""

import contextlib
import os
import sys
import traceback

with contextlib.suppress(OSError):
    os.setsid()  # what a terminal or `timeout` sends to the whole group, the conductor passes on
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else a question for GPUs starts the driver, which a fork breaks
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
    os.environ.pop(name, None)  # of the grid's own launch: some modules look when they are imported

try:
    import importlib

    for name in (
        "torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "accelerate", "safetensors.torch",
        "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "rich.live",
        "rich.table", "launcher.batching.plan", "launcher.training.checkpoint", "launcher.config.components",
        "launcher.training.divergence", "launcher.training.engine", "launcher.sweep.comparison", "launcher.loop",
        "launcher.losses.loss", "launcher.metrics.sums", "launcher.optimizers.optimizer", "launcher.build",
        "launcher.run.report", "launcher.run.reporter", "launcher.run.run_directory", "launcher.schedulers.schedule",
        "launcher.distributed.stopping", "launcher.batching.stream", "launcher.run.terminal", "launcher.run.tracking",
        "launcher.train", "launcher.distributed.watch",
    ):  # fmt: skip
        importlib.import_module(name)

    # Sources and models of our own, which a run imports by name; those that lack their package will say so then.
    import io
    import pkgutil

    import launcher.data
    import launcher.models

    for package in (launcher.data, launcher.models):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
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
