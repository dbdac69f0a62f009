"""Trials that share a GPU: each allocates its share and no more, and `auto` finds shares that suffice."""

import json
import os
import subprocess
import sys

import pytest
import torch
from gpus import ON
from processes import REPOSITORY

from launcher.distributed.devices import MEMORY_SHARE, keep_to_share

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(ON == "cpu", reason="a CPU's memory has no shares")
def test_a_share_is_all_that_a_process_gets(monkeypatch):
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    monkeypatch.setenv(MEMORY_SHARE, "0.1")
    keep_to_share(device)
    assert torch.empty(total // 100, dtype=torch.uint8, device=device).numel() > 0
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total // 5, dtype=torch.uint8, device=device)
    torch.cuda.set_per_process_memory_fraction(1.0, device)


def test_as_many_trials_as_the_memory_has_room_for(tmp_path):
    words = ["seed=0,1,2", "epochs=2", "wandb.mode=disabled", "hydra.sweep.dir=sweep", "hydra.launcher.devices=1",
             "hydra.launcher.trials_per_device=auto"]  # fmt: skip
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(REPOSITORY / "launcher/train.py"), "-m", *words]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = [json.loads(file.read_text()) for file in tmp_path.glob("sweep/*/summary.json")]
    assert [summary["status"] for summary in found] == ["finished"] * 3
    at_first = done.stdout.partition(" in ")[0].count("started on")  # before the first has ended
    assert at_first == (1 if ON == "cpu" else 3)
