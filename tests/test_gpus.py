"""Which GPU a rank takes, and which a sweep, of those that nvidia-smi lists: here a stand-in that prints the same."""

import os
import time

import processes
import pytest

from launcher import gpus
from launcher.errors import ConfigError

# --- The device of a rank --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "local_rank", "local_world_size", "expected"),
    [
        (1, 0, 1, 0),
        (8, 5, 8, 5),
        (8, 1, 2, 1),
        (1, 3, 4, 0),  # --gpus-per-task=1, --gpu-bind=single:1: each task sees one
        (2, 1, 4, None),  # two for four: whose they are cannot be told
        (0, 0, 1, None),
    ],
)
def test_the_device_of_a_rank(count, local_rank, local_world_size, expected):
    found = gpus.index_of_rank(count, local_rank, local_world_size)
    assert found == expected
    if found is not None:  # as Accelerate has it, which sets the device once more (state.py, set_device)
        assert found == local_rank % count


def device(gpu=None, host="n1", kind="gpu"):
    return {"host": host, "kind": kind, "gpu": gpu}


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([device(), device()], None),
        ([device("GPU-a"), device("GPU-b"), device("GPU-c", "n2"), device("GPU-d", "n2")], None),
        ([device("GPU-a"), device("GPU-b", "n2"), device("GPU-b", "n2")], r"ranks 1 and 2 have the same GPU of n2"),
        ([device(kind="cpu"), device(kind="cpu")], None),
        ([device(), device(), device(host="n2", kind="cpu")], "rank 0 on n1 has a GPU, and rank 2 on n2 has none"),
    ],
)
def test_devices_that_do_not_go_together(devices, said):
    if said is None:
        gpus.check_devices(devices)
    else:
        with pytest.raises(ConfigError, match=said):
            gpus.check_devices(devices)


def _compare(names, seconds):
    """A rank that sees one GPU of that name; one without a name ends before it says so."""
    from launcher import distributed, watch

    ranks = distributed.find_ranks(os.environ)
    watch.until_heard = lambda: distributed.until_heard(3)  # which waits 30 s for a rank that never comes
    if names[ranks.rank] is None:
        return

    def run():
        import torch
        import torch.distributed as dist

        distributed.judged_by_rank_0(device(names[ranks.rank]), gpus.check_devices, ranks, seconds)
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        print(f"{total.item():g} met")
        dist.destroy_process_group()
        return 0

    watch.guarded(run)


def test_ranks_that_have_the_same_gpu_are_all_refused(tmp_path):
    """Before they are a group, which would hang: NCCL takes no GPU twice."""
    run = processes.start(_compare, (["GPU-a", "GPU-b", "GPU-c"], 60), tmp_path / "own", 3).ok()
    assert [run.out(rank) for rank in range(3)] == ["3 met\n"] * 3
    run = processes.start(_compare, (["GPU-a", "GPU-b", "GPU-b"], 60), tmp_path / "same", 3).wait(30)
    assert run.status == [2, 2, 2]
    for rank in range(3):
        assert run.err(rank).startswith("error: ranks 1 and 2 have the same GPU of n1 (GPU-b): start one process per")


def test_a_rank_that_does_not_say_its_device_is_named(tmp_path):
    started = time.monotonic()
    run = processes.start(_compare, (["GPU-a", "GPU-b", None], 5), tmp_path, 3).wait(40)
    assert run.status == [1, 1, 0] and time.monotonic() - started < 20
    assert "ranks [2] did not come within 4.5 s" in run.err(0)
    assert "ranks [2] did not come within 4.5 s" in run.err(1)
