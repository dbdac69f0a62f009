"""What the parent of the tests' processes imports once. A mistake here must be seen, since forkserver hides it."""

import importlib
import sys
import traceback

MODULES = """
    accelerate hydra.main matplotlib.pyplot matplotlib.backends.backend_agg matplotlib.backends.backend_svg numpy.random
    torch torch._dynamo torch.distributed torch.distributed.fsdp torch.nn.parallel torch.onnx
    launcher.batch launcher.checkpoint launcher.engine launcher.losses launcher.loop launcher.metrics
    launcher.optimizers launcher.parts launcher.report launcher.reporter launcher.run_directory launcher.schedulers
    launcher.sharded launcher.stopping launcher.stream launcher.terminal launcher.tracking launcher.train launcher.views
    launcher.watch
"""  # torch._dynamo, which DDP and the optimizers import, brings sympy: 1.4 s in every process

try:
    for name in MODULES.split():
        importlib.import_module(name)
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    raise
