"""What the parent of the tests' processes imports once. A mistake here must be seen, since forkserver hides it."""

import sys
import traceback

try:
    import launcher.batch
    import launcher.checkpoint
    import launcher.engine
    import launcher.losses
    import launcher.metrics
    import launcher.optimizers
    import launcher.report
    import launcher.reporter
    import launcher.run_directory
    import launcher.schedulers
    import launcher.stopping
    import launcher.stream
    import launcher.terminal
    import launcher.tracking
    import launcher.train  # noqa: F401
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    raise
