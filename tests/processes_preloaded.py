"""What the parent of the tests' processes imports once. A mistake here must be seen, since forkserver hides it."""

import importlib
import sys
import traceback

MODULES = """
    accelerate hydra.main matplotlib.pyplot matplotlib.backends.backend_agg matplotlib.backends.backend_svg numpy.random
    torch torch._dynamo torch.distributed torch.distributed.fsdp torch.nn.parallel torch.onnx
    launcher.batching.plan launcher.training.checkpoint launcher.training.trainer launcher.losses.loss launcher.loop
    launcher.metrics.named launcher.optimizers.optimizer launcher.build launcher.run.report launcher.run.reporter
    launcher.run.run_directory launcher.schedulers.schedule launcher.training.sharded launcher.distributed.stop_request
    launcher.batching.stream launcher.run.terminal launcher.run.record launcher.train launcher.run.trackers.views
    launcher.distributed.watchdog launcher.config.schema
"""  # torch._dynamo, which DDP and the optimizers import, brings sympy: 1.4 s in every process

try:
    for name in MODULES.split():
        importlib.import_module(name)
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    raise
