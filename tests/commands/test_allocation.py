"""What is wrong with an allocation, in words."""

import pytest

from launcher.commands import allocation
from launcher.distributed.ranks import Ranks


def test_a_gpu_that_is_hidden_has_not_been_given(monkeypatch):
    for given, count in (("-1", 0), ("", 0), ("NoDevFiles", 0), ("97,98", 2)):  # of which torch sees none anywhere
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert allocation.look_here(Ranks(0, 1, 0, 1), "auto")["given_gpus"] == count


def test_a_file_system_without_locks_is_named(tmp_path):
    one = {"host": "n2", "rank": 1, "trouble": None, "seen": True, "locked": False}
    (said,) = allocation.directory_problems(tmp_path, [{**one, "host": "n1", "rank": 0, "locked": True}, one, one])
    assert "n2 is not kept out by a lock (flock) of n1" in said


def fact(rank, **changes):
    own = {"name": "H200", "id": str(rank)}
    versions = {"python": "3.11", "torch": "2.9"}
    return {"rank": rank, "host": "n1", "local_world_size": 2, "gpu": own, "gpus": 2, "given_gpus": 2,
            "cores": [rank], "import_seconds": 1.0, "versions": versions} | changes  # fmt: skip


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({}, None),
        ({"gpu": {"name": "H200", "id": "0"}}, "ranks 0, 1 share a GPU of n1"),
        ({"gpu": None, "gpus": 0, "host": "n2"}, "n2: 2 GPUs were given, and torch sees none"),
        ({"gpu": None, "gpus": 1}, "n1: 2 ranks and 1 GPUs"),
        ({"gpus": 1}, None),  # --gpus-per-task=1: each sees its own alone
        ({"cores": [0]}, "2 ranks are bound to core 0 alone"),
        ({"versions": {"python": "3.11", "torch": "2.8"}}, "torch differs: 2.9 on ranks 0; 2.8 on ranks 1"),
    ],
)
def test_problems_in_words(second, said):
    found = allocation.find_problems([fact(0), fact(1, **second)])
    assert found == [] if said is None else len(found) == 1 and said in found[0]


def test_clocks():
    """Two nodes, the second 3 s ahead; every look takes some milliseconds."""
    rounds = [[("n1", 100.0), ("n2", 103.02)], [("n1", 200.0), ("n2", 203.004)], [("n1", 300.0), ("n2", 303.5)]]
    skews = dict(allocation.least_skews(rounds))
    assert skews["n1"] == 0 and skews["n2"] == pytest.approx(3.004)
