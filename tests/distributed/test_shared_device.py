"""device=shared: several processes on one GPU. What needs one is in tests/gpu."""

import json

import pytest
import torch
import torch.distributed as dist
from kill_loop import RUN, place
from processes import start, train

from launcher.core.errors import ConfigError
from launcher.distributed.process_group import Ranks, check_share, gpu_of


def of(local_rank, world):
    return Ranks(local_rank, world, local_rank, world)


@pytest.mark.parametrize(
    ("device", "world", "gpus", "word"),
    [
        ("auto", 2, 2, None),
        ("auto", 4, 0, None),  # on the CPU
        ("cpu", 4, 0, None),
        ("auto", 3, 2, "3 processes on this machine, which has 2 GPUs"),
        ("auto", 2, 1, None),  # another one for each, as SLURM shows them: that is compared later
        ("shared", 2, 1, None),
        ("shared", 1, 1, None),
        ("shared", 8, 4, None),
        ("shared", 2, 0, "device=shared: torch sees no GPU"),
        ("shared", 1, 0, "device=shared: torch sees no GPU"),
    ],
)
def test_each_process_has_a_gpu_or_may_share_one(device, world, gpus, word):
    if word is None:
        check_share(device, of(0, world), gpus)
    else:
        with pytest.raises(ConfigError, match=word):
            check_share(device, of(0, world), gpus)


@pytest.mark.parametrize(
    ("world", "gpus", "expected"),
    [(1, 1, [0]), (2, 1, [0, 0]), (2, 2, [0, 1]), (2, 8, [0, 1]), (5, 2, [0, 1, 0, 1, 0])],
)
def test_processes_take_the_gpus_in_turn(world, gpus, expected):
    assert [gpu_of(of(rank, world), gpus) for rank in range(world)] == expected


@pytest.mark.parametrize("world", [1, 2])
def test_without_a_gpu_it_is_refused(world, tmp_path):
    run = train([*RUN, "device=shared"], place(tmp_path), world).wait()
    assert run.status == [2] * world and not (tmp_path / "run").exists()
    assert "device=shared: torch sees no GPU" in run.err(0) and "Traceback" not in run.err(0)


def test_another_word_is_refused(tmp_path):
    run = train([*RUN, "device=gpu"], place(tmp_path)).wait()
    assert run.status == [2] and "device=gpu" in run.err() and "shared" in run.err()


def _mesh(directory):
    """The group of a sharded model's mesh, where torch sees a GPU."""
    from launcher.training.sharded import mesh_of_all

    dist.init_process_group("gloo")
    torch.cuda.is_available = lambda: True  # all that init_device_mesh asks; see DeviceMesh._init_one_process_group
    mesh = mesh_of_all("cpu")
    found = {"same": mesh.get_group() is dist.group.WORLD, "groups": len(dist.distributed_c10d._world.pg_map)}
    found["size"] = mesh.size()
    (directory / f"mesh.{dist.get_rank()}").write_text(json.dumps(found))
    dist.barrier()  # rank 0 takes the store along when it ends
    dist.destroy_process_group()


def test_a_sharded_model_has_no_group_of_nccl_beside_that_of_gloo(tmp_path):
    start(_mesh, (tmp_path,), tmp_path / "io", 2).ok()
    for rank in (0, 1):
        assert json.loads((tmp_path / f"mesh.{rank}").read_text()) == {"same": True, "groups": 1, "size": 2}
