import multiprocessing

import pytest

from launcher.sweep.leases import Pool
from launcher.sweep.wishes import Wish

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda *locks: Pool("gpu", {lock: lock for lock in locks})


def wishes(pool, counts, ends):
    wish = Wish(pool)
    for count in counts:
        wish.tell(count)
    ends.send(wish.count)
    ends.recv()  # it is killed here, or let go
    wish.tell(0)
    ends.send(wish.count)
    ends.recv()


@pytest.fixture
def other():
    """A process of another sweep that waits for devices."""
    begun = []

    def begin(pool, *counts):
        here, there = FORK.Pipe()
        begun.append(FORK.Process(target=wishes, args=(pool, counts, there)))
        begun[-1].start()
        assert here.recv() == counts[-1]
        return begun[-1], here

    yield begin
    for process in begun:
        process.kill()
        process.join()


def test_what_one_waits_for_others_see_as_long_as_it_does(pool, other):
    own = Wish(pool("a", "b"))
    assert own.of_others() == []
    _, ends = other(pool("b", "c"), 1, 3)
    assert own.of_others() == [3]
    assert Wish(pool("a")).of_others() == []  # it may not have this device
    own.tell(2)
    assert own.of_others() == [3]  # one's own is no other's
    ends.send(None)
    assert ends.recv() == 0
    assert own.of_others() == []


def test_what_a_killed_one_waited_for_counts_no_more(pool, other):
    process, _ = other(pool("a"), 1)
    own = Wish(pool("a"))
    assert own.of_others() == [1]
    process.kill()
    process.join()
    assert own.of_others() == [] and list(own.pool.directory.iterdir()) == []
