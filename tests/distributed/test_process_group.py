"""The process group of a run: who makes it, with what, and that one process has none to leave."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from processes import free_port, start

from launcher.distributed import process_group
from launcher.distributed.ranks import Ranks, find_ranks
from launcher.distributed.watchdog import finish

STRATEGY = {"name": "ddp"}


def _bring_up(directory, device):
    """Start as a run does, note what came up, and leave."""
    import torch.distributed as dist

    ranks, asked, init = find_ranks(os.environ), [], dist.init_process_group

    def noted(*arguments, **named):
        asked.append(torch.are_deterministic_algorithms_enabled())
        init(*arguments, **named)

    dist.init_process_group = noted
    settings = {
        "device": device, "mixed_precision": "no", "threads": 1, "timeout": 37, "deterministic": True,
        "strategy": STRATEGY, "float32_matmul_precision": "highest",
    }  # fmt: skip
    accelerator = process_group.start(ranks, settings, device == "cpu")
    found = {"group": dist.is_initialized(), "count": accelerator.num_processes, "device": str(accelerator.device)}
    found["local rank"] = os.environ.get("LOCAL_RANK")
    if found["group"]:
        found["asked"] = asked
        group = dist.group.WORLD
        found["bound"] = str(group.bound_device_id)
        found["timeout"] = group._get_backend(accelerator.device).options._timeout / timedelta(seconds=1)
        dist.barrier()
        dist.destroy_process_group()
    finish(None)
    (Path(directory) / f"found.{ranks.rank}").write_text(json.dumps(found))


def test_the_launcher_makes_the_group_and_accelerate_takes_it_up(tmp_path):
    start(_bring_up, (str(tmp_path), "cpu"), tmp_path / "io", 2).ok()
    for rank in (0, 1):
        found = json.loads((tmp_path / f"found.{rank}").read_text())
        assert found["group"] and found["count"] == 2 and found["device"] == "cpu"
        assert found["timeout"] == 37 + process_group.LONGER and found["bound"] == "None"
        assert found["asked"] == [True], "NCCL leaves NVLS out where deterministic kernels are asked for before"


def test_accelerate_still_passes_no_device_on():
    """Else its own call would do."""
    assert "device_id" not in InitProcessGroupKwargs.__dataclass_fields__


def test_the_device_of_a_rank_is_passed_on(monkeypatch):
    """To torch, which looks whether it is there before the ranks meet: here it is not."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(ValueError, match="device_id cuda:9 "):
        process_group.join_group(Ranks(0, 2, 0, 2), "nccl", torch.device("cuda", 9), 5)


def test_one_process_of_torchrun_has_no_group_to_leave(tmp_path):
    """Accelerate makes one where it finds LOCAL_RANK, on any device, and NCCL warns of one that is not left."""
    variables = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    start(_bring_up, (str(tmp_path), "cpu"), tmp_path / "io", 1, variables).ok()
    found = json.loads((tmp_path / "found.0").read_text())
    assert found == {"group": False, "count": 1, "device": "cpu", "local rank": None}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL refuses two ranks on one")
def test_nccl_is_told_the_device_of_each_rank(tmp_path):
    start(_bring_up, (str(tmp_path), "cuda"), tmp_path / "io", 2).ok(120)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"found.{rank}").read_text())
        assert found["bound"] == found["device"] == f"cuda:{rank}"
        assert found["timeout"] == 37 + process_group.LONGER


def _own_index():
    """A rank that is shown one GPU: Accelerate on the CPU, told that it is on that."""
    accelerator = Accelerator(cpu=True)
    before = accelerator.local_process_index
    accelerator.state.device = torch.device("cpu")
    process_group.take_own_index(accelerator)
    assert accelerator.local_process_index == before == int(os.environ["RANK"])
    accelerator.state.device = torch.device("cuda", 0)
    process_group.take_own_index(accelerator)
    print(accelerator.local_process_index, accelerator.process_index, accelerator.is_main_process)
    torch.distributed.barrier()  # rank 0 keeps the store by which the other one still connects
    torch.distributed.destroy_process_group()


def test_ddp_gets_the_gpu_that_the_rank_is_on(tmp_path):
    """Accelerate takes its local_process_index for DDP's device_ids (accelerator.py, prepare_model)."""
    run = start(_own_index, (), tmp_path, 2).ok()
    assert [run.out(rank) for rank in range(2)] == ["0 0 True\n", "0 1 False\n"]
