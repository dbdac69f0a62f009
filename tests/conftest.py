import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join(  # for the parent of the tests' processes, which imports from here
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["OMP_NUM_THREADS"] = "1"  # the tests' own arithmetic is small, and runs beside processes they start
for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "RANK", "WORLD_SIZE"):
    os.environ.pop(variable, None)

from slurm_cluster import slurm  # noqa: E402, F401
