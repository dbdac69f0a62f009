"""Names that other packages do not promise are still there, and still mean what they did."""

import os
import subprocess
import sys

from launcher.core import compat

STARTED = """
import json, os, signal, sys
from launcher.core import compat
pids = []
compat.on_wandb_core(lambda service: pids.append(service.pid))
import wandb
run = wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
commands = [open(f"/proc/{pid}/cmdline").read() for pid in pids]
run.finish()
assert len(pids) == 1 and "wandb-core" in commands[0], (pids, commands)
"""


def test_wandb_starts_its_service_by_subprocess(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_wandb_has_the_settings_that_it_may_drop():
    import wandb

    assert set(compat.wandb_settings(1)) <= set(wandb.Settings.model_fields)
