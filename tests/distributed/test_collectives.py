"""What ranks tell each other: sums in the order of ranks, and things."""

import os

import torch
from processes import start

from launcher.distributed.collectives import at_rank_0, from_rank_0, sum_over_ranks, sum_over_shards


def _shares(world, shards):
    """[shards, 5] of each rank: numbers of which each order of adding gives other bits."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(world, shards, 5, generator=generator).exp()


def _ranks(world):
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    shares = _shares(world, 2)
    expected = shares.flatten(0, 1)[0]
    for share in shares.flatten(0, 1)[1:]:
        expected = expected + share
    (summed,) = sum_over_shards([shares[rank]], world)
    assert torch.equal(summed, expected)
    (summed,) = sum_over_ranks([shares[rank, 0].t()], world)
    assert torch.equal(summed, shares[0, 0] + shares[1, 0] + shares[2, 0])
    assert from_rank_0({"rank": rank}, world) == {"rank": 0}
    assert at_rank_0(f"of {rank}", world, rank) == ([f"of {one}" for one in range(world)] if rank == 0 else None)
    dist.destroy_process_group()


def test_sums_are_added_up_in_the_order_of_ranks(tmp_path):
    start(_ranks, (3,), tmp_path, 3).ok()


def test_one_process_needs_no_group():
    share = torch.arange(3.0)
    assert sum_over_ranks([share], 1)[0] is share
    assert sum_over_shards([torch.stack([share, share])], 1)[0].tolist() == [0, 2, 4]
    assert from_rank_0("a", 1) == "a" and at_rank_0("a", 1, 0) == ["a"]
