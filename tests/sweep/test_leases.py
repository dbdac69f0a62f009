import os
import subprocess
import time
from pathlib import Path

import pytest
from sweeps import OWN_MODEL, end, start, summary, trials

from launcher.core.errors import ConfigError
from launcher.sweep.leases import Pool, choose


def test_a_device_is_lent_once_over_all_pools(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    locks = {str(number): str(number) for number in range(4)}
    one, two = Pool("gpu", locks), Pool("gpu", locks)
    first, second = one.take(2), two.take(2)
    assert {lease.device for lease in first} | {lease.device for lease in second} == set(locks)
    assert one.take(1) is None and two.take(1) is None
    assert one.free() == two.free() == 0
    assert one.holders() == [f"{lease.device}: pid {os.getpid()}" for lease in second]
    one.give_back(first)
    assert two.take(3) is None  # and the two it could get are free again
    assert one.free() == two.free() == 2
    assert len(one.take(2)) == 2


def test_a_device_stays_lent_until_the_last_process_on_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool = Pool("gpu", {"0": "0"})
    (lease,) = pool.take(1)
    child = subprocess.Popen(["sleep", "30"], pass_fds=[lease.handle])
    os.close(lease.handle)  # as if this process had been killed
    other = Pool("gpu", {"0": "0"})
    assert other.take(1) is None
    child.kill()
    child.wait()
    assert len(other.take(1)) == 1


def test_shares_fill_the_emptiest_device_first_and_never_more_than_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool, other = Pool("gpu", {"0": "0", "1": "1"}), Pool("gpu", {"0": "0", "1": "1"})
    thirds = [pool.take(1, 1 / 3)[0] for _ in range(6)]
    assert [lease.device for lease in thirds] == ["0", "1"] * 3
    assert pool.take(1, 0.01) is None and not pool.has(1, 1 / 3)
    pool.give_back([thirds[0]])
    assert pool.take(2, 1 / 3) is None and pool.take(1) is None  # a share on each of two; a whole one
    assert pool.has(1, 1 / 3) and pool.used("0") == pytest.approx(2 / 3)
    pool.give_back(thirds[2:5:2])
    (whole,) = pool.take(1)
    assert whole.device == "0" and other.take(1, 0.1) is None  # what a sweep shares, it shares with itself
    pool.give_back([whole, *thirds[1::2]])
    assert len(other.take(2)) == 2


def test_a_shared_device_stays_lent_until_the_last_process_on_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool, other = Pool("gpu", {"0": "0"}), Pool("gpu", {"0": "0"})
    halves = [pool.take(1, 0.5)[0] for _ in range(2)]
    children = [subprocess.Popen(["sleep", "30"], pass_fds=[lease.handle]) for lease in halves]
    for lease in halves:
        os.close(lease.handle)  # as if this process had been killed
    for child in children:
        assert other.take(1, 0.5) is None
        child.kill()
        child.wait()
    assert len(other.take(1, 0.5)) == 1


def test_devices_that_are_asked_for():
    there = {"0": "a", "1": "b"}
    assert choose("auto", there, "gpu") == there
    assert choose(1, there, "gpu") == {"0": "a"}
    assert choose([1], there, "gpu") == {"1": "b"}
    assert len(choose(4, there, "cpu")) == 4
    for asked in (3, [2], [0, 0], [], 0, "some", True):
        with pytest.raises(ConfigError, match=r"hydra\.launcher\.devices"):
            choose(asked, there, "gpu")


def intervals(notes):
    """Devices and time of each life: from the first note of a process to the next note of the same device's begin."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return [(float(at), pid, frozenset(names.split(","))) for at, _, pid, names in lines]


@pytest.mark.soak
def test_two_sweeps_share_four_devices_and_never_one(place):
    """Pretended devices, two per trial: what the locks say is checked against who was alive on what, and when."""
    notes = place / "notes"
    words = ["hydra.launcher.devices=4", "hydra.launcher.devices_per_run=2", "+model.delay=0.05", *OWN_MODEL]
    both = [
        start([*words, "seed=0,1,2", f"hydra.sweep.dir={name}"], place, NOTES=str(notes)) for name in ("sweep", "other")
    ]
    alive: list[dict[int, frozenset[str]]] = []
    while any(process.poll() is None for process in both):
        now = {}
        if notes.exists():
            for _, pid, names in intervals(notes):
                state = Path(f"/proc/{pid}/stat")
                if state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
                    now[int(pid)] = names
        alive.append(now)
        time.sleep(0.02)
    for process in both:
        status, _, err = end(process)
        assert status == 0, err
    most = 0
    for now in alive:
        sets = list(now.values())
        for names in set(sets):
            assert len(names) == 2 and sets.count(names) <= 2  # its two ranks
        flat = [name for names in set(sets) for name in names]
        assert len(flat) == len(set(flat)), now
        most = max(most, len(set(sets)))
    assert most == 2
    for name in ("sweep", "other"):
        assert len(trials(place / name)) == 3
        assert all(summary(path)["world_size"] == 2 for path in trials(place / name).values())
