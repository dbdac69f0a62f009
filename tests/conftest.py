import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLACES = [str(HERE), *sorted({str(file.parent) for file in HERE.glob("**/test_*.py")})]
sys.path[:0] = PLACES
os.environ["PYTHONPATH"] = os.pathsep.join(  # for the parent of the tests' processes, which imports from here
    [*PLACES, *filter(None, [os.environ.get("PYTHONPATH")])]
)
import gpus  # noqa: E402

gpus.hide()  # from tests that are not for them, before torch is imported
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="launcher-cache-")  # not that of whoever runs the tests
os.environ["OMP_NUM_THREADS"] = "1"  # the tests' own arithmetic is small, and runs beside processes they start
for number in (
    signal.SIGINT,
    signal.SIGHUP,
):  # which `pytest &` in a script, and nohup, ignore: so would what is tested
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
for variable in [*os.environ]:
    if variable.startswith("WANDB_") or variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[variable]

pytest_plugins = ["deadline"]

from gpus import (  # noqa: E402, F401
    pytest_configure,
    pytest_runtest_protocol,
    pytest_runtest_setup,
)
from slurm_cluster import slurm  # noqa: E402, F401


@pytest.fixture(autouse=True)
def environment_kept():
    """What a test, or a library that it calls, sets in the environment or of torch's kernels is gone when it is."""
    before = dict(os.environ)
    torch = sys.modules.get("torch")
    mode = torch.get_deterministic_debug_mode() if torch else 0
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
    if torch := sys.modules.get("torch"):
        torch.set_deterministic_debug_mode(mode)  # which a test that brings up a run has on
