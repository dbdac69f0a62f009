"""What rank 0 tells the others, before and after they are a process group."""

import os
import time

import processes
import pytest
import torch

from launcher.distributed.devices import check_devices
from launcher.distributed.ranks import find_ranks
from launcher.distributed.rendezvous import by_rank_0, judged_by_rank_0, until_heard


def _tells(failure):
    """A rank whose rank 0 cannot make what it has to tell."""
    from launcher.distributed.exit_status import guarded

    ranks = find_ranks(os.environ)

    def make():
        if failure:
            raise OSError("no such disk")
        return {"rank": ranks.rank}

    assert failure or by_rank_0("a test", dict, ranks, 60) == {}
    guarded(lambda: print(by_rank_0("a test", make, ranks, 60)) or 0)
    until_heard()  # in a run the process group sees to that


def test_what_fails_on_rank_0_ends_every_rank(tmp_path):
    run = processes.start(_tells, (False,), tmp_path / "right", world=2).ok()
    assert [run.out(rank) for rank in range(2)] == ["{'rank': 0}\n"] * 2
    run = processes.start(_tells, (True,), tmp_path / "wrong", world=2).wait(20)
    assert run.status == [1, 1]
    assert "Traceback" in run.err(0) and "OSError: no such disk" in run.err(0)
    assert "failed: rank 0 failed: no such disk" in run.err(1) and "Traceback" not in run.err(1)


def device(gpu):
    return {"host": "n1", "kind": "gpu", "gpu": gpu}


def _compare(names, seconds):
    """A rank that sees one GPU of that name; one without a name ends before it says so."""
    from launcher.distributed import exit_status

    ranks = find_ranks(os.environ)
    exit_status.until_heard = lambda: until_heard(3)  # which waits 30 s for a rank that never comes
    if names[ranks.rank] is None:
        return

    def run():
        import torch.distributed as dist

        judged_by_rank_0(device(names[ranks.rank]), check_devices, ranks, seconds)
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        print(f"{total.item():g} met")
        dist.destroy_process_group()
        return 0

    exit_status.guarded(run)


def test_ranks_that_have_the_same_gpu_are_all_refused(tmp_path):
    """Before they are a group, which would hang: NCCL takes no GPU twice."""
    run = processes.start(_compare, (["GPU-a", "GPU-b", "GPU-c"], 60), tmp_path / "own", 3).ok()
    assert [run.out(rank) for rank in range(3)] == ["3 met\n"] * 3
    run = processes.start(_compare, (["GPU-a", "GPU-b", "GPU-b"], 60), tmp_path / "same", 3).wait(30)
    assert run.status == [2, 2, 2]
    for rank in range(3):
        assert run.err(rank).startswith("error: ranks 1 and 2 have the same GPU of n1 (GPU-b): start one process per")


@pytest.mark.soak
def test_a_rank_that_does_not_say_its_device_is_named(tmp_path):
    started = time.monotonic()
    run = processes.start(_compare, (["GPU-a", "GPU-b", None], 5), tmp_path, 3).wait(40)
    assert run.status == [1, 1, 0] and time.monotonic() - started < 20
    assert "ranks [2] did not come within 4.5 s" in run.err(0)
    assert "ranks [2] did not come within 4.5 s" in run.err(1)
