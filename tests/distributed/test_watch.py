"""What the ranks know of each other where there are more of them than each one looks at."""

import os
import signal
import time
from datetime import timedelta

import pytest
from processes import start

RANKS = 7


class Counted:
    def __init__(self, store):
        self.store, self.requests = store, 0

    def __getattr__(self, name):
        self.requests += 1
        return getattr(self.store, name)


def watched(hangs):
    import torch.distributed as dist

    from launcher.distributed.process_group import Ranks
    from launcher.distributed.watch import Watch

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    watch = Watch(Ranks(rank, RANKS, rank, RANKS), 3.0)
    watch._store = Counted(watch._store)
    time.sleep(3.5)
    print(watch._store.requests, flush=True)
    if rank == hangs:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


@pytest.mark.soak
def test_a_silent_rank_is_known_to_those_who_do_not_look_at_it(tmp_path):
    started = time.monotonic()
    run = start(watched, [3], tmp_path, RANKS)
    while any(run.processes[rank].exitcode is None for rank in range(RANKS) if rank != 3):
        assert time.monotonic() - started < 40
        time.sleep(0.1)
    run.wait(5)  # the others have ended the one that is stopped
    for rank in range(RANKS):
        if rank != 3:
            assert run.status[rank] == 1 and "rank 3 has been silent" in run.err(rank), run.err(rank)
            # Three beats, each of them no more requests than in any larger group.
            assert int(run.out(rank)) <= 4 * 13, run.out(rank)


def leaves(slow):
    import torch.distributed as dist

    from launcher.distributed.process_group import Ranks
    from launcher.distributed.watch import Watch, finish

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    watch = Watch(Ranks(rank, 2, rank, 2), 30.0)
    close = watch.close
    if rank == slow:  # a machine under load: the other's process has long ended when this one stops watching
        watch.close = lambda: (time.sleep(4), close())
    finish(watch)


@pytest.mark.parametrize("slow", [0, 1])
def test_a_rank_that_leaves_late_does_not_take_the_others_for_lost(slow, tmp_path):
    start(leaves, [slow], tmp_path, 2).ok()
