"""Trials that get more devices while some idle, and give them back: who gets what, by chance, and for real."""

import json
import random
import re
import sys
from types import SimpleNamespace

import psutil
import pytest
from processes import REPOSITORY, train
from sweeps import OWN, OWN_MODEL, end, of, start, summary, trials, wait_for, weights

from launcher.sweep import malleable
from launcher.sweep.malleable import Malleable, claim, deal
from launcher.sweep.trial_state import State

# Moves again at once, where that would wait for ten times what a move costs.
QUICK = f"""
import runpy, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from launcher.sweep import malleable
malleable.APART = malleable.LEFT = float(sys.argv[1])
malleable.LOOK = 0.1
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Slow until a file is there: what a test waits for happens while it is, however busy the machine.
GATED = """
class Gated(Net):
    def forward(self, x):
        if os.path.exists("open"):
            self.delay = 0.0
        return super().forward(x)
"""
EXACT = ["device=cpu", "hydra.launcher.devices=2", *OWN_MODEL, "model._target_=own.Gated", "exact_across_devices=True",
         "log_every=1", "epochs=8"]  # fmt: skip
BY_NEED = [*EXACT, "hydra.launcher.devices_per_run=1-2"]


def begin(place, words):
    (place / "quick.py").write_text(QUICK)
    (place / "own.py").write_text(OWN + GATED)
    return start(words, place, [sys.executable, str(place / "quick.py"), "0.2"])


def sizes(directory, text):
    """The numbers of devices that a trial has begun with, one for each start."""
    logs = [path for path in directory.glob("*/train.log") if text in path.parent.name]
    return [int(count) for path in logs for count in re.findall(r"update = (\d) devices? x", path.read_text())]


# --- Who gets what ----------------------------------------------------------------------------------------------------


def test_devices_are_dealt():
    one_to_four = {1: 1, 2: 2, 4: 4}
    assert deal(4, []) == []
    assert deal(4, [one_to_four]) == [4]
    assert deal(4, [one_to_four, one_to_four]) == [2, 2]
    assert deal(4, [one_to_four] * 3) == [2, 1, 1]
    assert deal(3, [one_to_four] * 5) == [1, 1, 1, 0, 0]
    assert deal(4, [{3: 3}, one_to_four]) == [3, 1]  # one that cannot be moved now
    assert deal(5, [{2: 2, 3: 3}] * 3) == [2, 2, 0]  # the last device idles: it is not enough for who waits


def test_whatever_there_is_it_is_dealt_with_those_that_wait_first():
    rng = random.Random(0)
    for _ in range(3000):
        devices, threads = rng.randint(0, 12), rng.randint(1, 3)
        sizes = [sorted(rng.sample(range(1, 9), rng.randint(1, 4))) for _ in range(rng.randint(0, 6))]
        claims = [{size: size * threads for size in own} for own in sizes]
        shares = deal(devices, claims)
        served = [(share, own) for share, own in zip(shares, sizes, strict=True) if share]
        used = sum(share * threads for share in shares)
        assert used <= devices and len(shares) == len(claims)
        assert shares == [share for share, _ in served] + [0] * (len(shares) - len(served))  # in their order
        assert all(share in own for share, own in served)
        if len(served) < len(claims):
            assert all(share == own[0] for share, own in served)
            assert used + sizes[len(served)][0] * threads > devices
        for share, own in served:
            above = [size for size in own if size > share]
            if len(served) == len(claims) and above:
                assert used + (above[0] - share) * threads > devices  # nothing that could be used is left


def test_the_rest_is_dealt_evenly():
    rng = random.Random(1)
    for _ in range(500):
        tops = [rng.randint(1, 6) for _ in range(rng.randint(1, 5))]
        devices = rng.randint(len(tops), 20)
        shares = deal(devices, [{size: size for size in range(1, top + 1)} for top in tops])
        assert sum(shares) == min(devices, sum(tops))
        below = [share for share, top in zip(shares, tops, strict=True) if share < top]
        assert not below or max(shares) <= min(below) + 1


def test_of_a_cpu_a_process_takes_a_core_for_each_thread():
    trial = SimpleNamespace(kind="cpu", threads=2, sizes=(1, 2, 4), world=1)
    assert claim(trial, 8) == {1: 2, 2: 4, 4: 8}
    assert claim(trial, 5) == {1: 2, 2: 4}
    assert claim(trial, 1) == {1: 1}  # the fewest may share a core
    trial.kind = "gpu"
    assert claim(trial, 8) == {1: 1, 2: 2, 4: 4}


class Told:
    """What other sweeps wait for, in place of `Wish`."""

    others = ()

    def __init__(self, pool):
        self.told = 0

    def tell(self, count):
        self.told = count

    def of_others(self):
        return list(self.others)


@pytest.fixture(autouse=True)
def told(monkeypatch):
    monkeypatch.setattr(malleable, "Wish", Told)
    monkeypatch.setattr(Told, "others", ())
    return Told


class Machine:
    """Trials that are nothing but an amount of work, on devices that are nothing but a number, by its clock."""

    def __init__(self, rng, monkeypatch):
        self.rng, self.now, self.moves = rng, 0.0, 0
        self.devices, self.kind = rng.randint(1, 9), "gpu"
        self.limit = rng.choice((99, 99, 2))
        self.running, self.queue, self.done = [], [], []
        self.chooser = Malleable({"gpu": self}, self.limit)
        monkeypatch.setattr(malleable, "share_done", lambda trial: trial.done / trial.work)

    def __len__(self):
        return self.devices

    def free(self):
        return self.devices - sum(len(run.leases) for run in self.running)

    def has(self, count):
        return self.free() >= count

    def comes(self, number):
        least = self.rng.randint(1, min(2, self.devices))
        sizes = tuple(size for size in (1, 2, 3, 4, 8) if size >= least)
        self.queue.append(
            SimpleNamespace(index=number, kind="gpu", threads=1, sizes=sizes, world=sizes[0], done=0.0,
                            work=self.rng.uniform(5, 900), state=State.NEW, is_malleable=len(sizes) > 1)
        )  # fmt: skip

    def tick(self):
        """A second: what fits is started, who is asked to ends, and the rest comes on."""
        for trial in list(self.queue):
            if len(self.running) >= self.limit:
                break
            world = self.chooser.world_for(trial, self.running, self.queue)
            assert world in trial.sizes
            if world > self.free():
                break
            self.queue.remove(trial)
            trial.world = world
            run = SimpleNamespace(trial=trial, leases=[None] * world, started=self.now, asked=None, moving=False,
                                  pulses=[[0, 0, 0]], trains=False)  # fmt: skip
            self.running.append(run)
        assert self.free() >= 0
        for run in self.chooser.moves(self.now, self.running, self.queue):
            assert run.trains and not run.moving
            run.asked, run.moving = self.now, True
            self.moves += 1
        self.now += 1.01
        for run in list(self.running):
            run.trains = self.now - run.started > 2
            run.trial.done = min(run.trial.work, run.trial.done + run.trial.world * run.trains)
            if run.trial.done == run.trial.work or run.moving:
                self.running.remove(run)
                ended = run.trial.done == run.trial.work
                (self.done if ended else self.queue).insert(0, run.trial)
                if not ended:
                    self.chooser.ended(run, self.now)


def test_sweeps_of_any_kind_end_without_too_many_moves(monkeypatch):
    moved = 0
    for seed in range(25):
        machine = Machine(random.Random(seed), monkeypatch)
        count = machine.rng.randint(1, 12)
        late = sorted(machine.rng.uniform(0, 600) for _ in range(count))  # as those of a search come
        while len(machine.done) < count:
            while late and late[0] <= machine.now:
                machine.comes(len(late))
                late.pop(0)
            Told.others = [1] * (machine.rng.random() < 0.01)  # another sweep comes and goes
            machine.tick()
            assert machine.now < 10_000
        # A move costs 3 s and more here, and after the first a trial trains at least ten times as long.
        assert machine.moves <= (1 + machine.now / 30) * count
        moved += machine.moves
    assert moved > 25


def running(index, world, sizes, done, since=100.0):
    trial = SimpleNamespace(index=index, kind="gpu", threads=1, sizes=sizes, world=world, share=0.0,
                            is_malleable=True, state=State.RUNNING)  # fmt: skip
    run = SimpleNamespace(trial=trial, leases=[None] * world, started=since - 2, asked=None, moving=False,
                          pulses=[[0, 1, 0.5]], trains=True)  # fmt: skip
    return run, done


def chosen(monkeypatch, free, runs, waiting, now, others=(), stopped=None):
    """Which of these move at the second look, when each has done its share since the first."""
    pool = type("Pool", (), {
        "free": lambda self: free, "has": lambda self, count: count <= free, "__len__": lambda self: 8
    })  # fmt: skip
    monkeypatch.setattr(Told, "others", others)
    chooser = Malleable({"gpu": pool()}, 99)
    monkeypatch.setattr(malleable, "share_done", lambda trial: trial.share)
    these = [run for run, _ in runs]
    for run in these:
        run.trial.share = 0.1
        if stopped is not None:  # it took so long the last time
            chooser.ended(SimpleNamespace(trial=run.trial, asked=0.0), stopped)
    assert chooser.moves(100.0, these, []) == []
    for run, done in runs:
        run.trial.share = done
    found = [run.trial.index for run in chooser.moves(now, these, waiting)]
    ready = [trial for trial in waiting if trial.state != State.WAITING]
    assert chooser._wishes["gpu"].told == (1 if ready and not free else 0)
    return found


def test_it_is_moved_only_where_that_pays(monkeypatch):
    """A start of 2 s, and a stop that is taken to be as long: 12 s have to be left. A second stop comes after 30 s."""
    cases = ((103, 0.4, []), (105, 0.4, []), (111, 0.4, [1]), (141, 0.4, [1]), (141, 0.85, []), (141, 0.1, []))
    for now, done, expected in cases:
        assert chosen(monkeypatch, 1, [running(1, 1, (1, 2), done)], [], now) == expected, (now, done)
    for now, done, expected in ((129, 0.4, []), (131, 0.4, [1]), (131, 0.85, [])):
        assert chosen(monkeypatch, 1, [running(1, 1, (1, 2), done)], [], now, stopped=1.0) == expected, (now, done)


def test_the_largest_gives_back_and_no_more_than_is_waited_for(monkeypatch):
    runs = [running(1, 2, (1, 2, 4), 0.2), running(2, 4, (1, 2, 4), 0.2), running(3, 2, (1, 2, 4), 0.2)]
    new = SimpleNamespace(kind="gpu", threads=1, sizes=(1, 2, 4), world=1, state=State.NEW)
    assert chosen(monkeypatch, 0, runs, [new], 200.0) == [2]
    held = SimpleNamespace(kind="gpu", threads=1, sizes=(1, 2, 4), world=1, state=State.WAITING)
    assert chosen(monkeypatch, 0, runs, [held], 200.0) == []  # a run of another start is in its directory
    assert chosen(monkeypatch, 1, runs, [new], 200.0) == []  # it is about to start
    assert chosen(monkeypatch, 0, runs, [], 200.0, others=[1]) == [2]  # another sweep waits
    assert chosen(monkeypatch, 0, runs, [], 200.0, others=[8]) == []  # for more than these could give back
    assert chosen(monkeypatch, 0, runs, [], 200.0, others=[3]) == [2, 3]
    runs[1][0].asked = 190.0
    assert chosen(monkeypatch, 0, runs, [new], 200.0) == [3]  # of the others one does


# --- For real ---------------------------------------------------------------------------------------------------------


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_trial_goes_on_with_two_processes_once_the_other_has_ended_and_the_bits_stay(place):
    process = begin(place, ["+model.delay=0.0,0.2", *BY_NEED])
    wait_for(lambda: sizes(place / "grid", "delay=0.2") == [1, 2], process)
    (place / "open").touch()
    status, out, err = end(process)
    assert status == 0, (out, err)
    assert out.count("moved to 2 processes on cpu 0,1: +model.delay=0.2") == 1, out
    assert "stopped in" not in out and "FAILED" not in out, out
    quick, slow = of(place / "grid", "delay=0.0,"), of(place / "grid", "delay=0.2")
    assert (summary(quick)["world_size"], summary(slow)["world_size"]) == (1, 2)
    assert weights(quick) == weights(slow)  # of which one ran on one device from first to last
    assert rows(quick) == rows(slow)
    known = json.loads((place / "grid/grid.json").read_text())
    assert known["devices_per_run"] == "1-2" and "devices_per_run=1-2" in known["command"]


@pytest.mark.soak
def test_a_trial_gives_back_what_another_sweep_waits_for_has_it_again_and_outlives_its_executor(place):
    first = begin(place, ["+model.delay=0.2", *BY_NEED, "checkpoint.every=5"])
    wait_for(lambda: sizes(place / "grid", "delay") == [2], first)
    status, out, err = end(start(["+model.delay=0.0", *EXACT, "hydra.sweep.dir=other"], place))
    assert status == 0 and "started on cpu" in out, (out, err)
    wait_for(lambda: sizes(place / "grid", "delay") == [2, 1, 2], first)
    first.kill()
    out, _ = first.communicate()
    lines = [line for line in out.splitlines() if line.startswith("trial 0 ")]
    words = ("started on cpu 0,1", "moved to 1 process on", "moved to 2 processes on")
    assert len(lines) == 3 and all(word in line for word, line in zip(words, lines, strict=True)), out
    (place / "open").touch()
    status, out, err = end(begin(place, ["+model.delay=0.2", *BY_NEED, "checkpoint.every=5"]))
    assert status == 0 and "1 to resume" in out, (out, err)
    one, two = of(place / "grid", "delay"), of(place / "other", "delay")
    assert weights(one) == weights(two) and rows(one) == rows(two)


@pytest.mark.soak
def test_a_search_that_prunes_moves_trials_and_outlives_a_killed_rank(place):
    """The record of a trial that it has let finish is that of the same trial alone on one device."""
    own = [*BY_NEED[:1], *OWN_MODEL[:-1], "model._target_=own.Gated", "exact_across_devices=True", "epochs=4"]
    words = [*BY_NEED, *own[-1:], "hydra/sweeper=optuna", "optimizer.lr=0.3,0.1,0.03", "hydra.sweeper.n_trials=3",
             "hydra.sweeper.sampler=random", "hydra.sweeper.seed=1", "hydra.sweeper.pruner=asha"]  # fmt: skip
    process = begin(place, [*words, "+model.delay=0.02"])
    wait_for(lambda: 2 in sizes(place / "grid", ""), process)
    psutil.Process(process.pid).children(recursive=True)[-1].kill()
    (place / "open").touch()
    status, out, err = end(process)
    assert status == 0, (out, err)
    found = [path for path in trials(place / "grid").values() if summary(path)["status"] == "finished"]
    rate = found[0].name.partition("optimizer.lr=")[2].split(",")[0]
    train([*own, "log_every=1", f"optimizer.lr={rate}", "hydra.run.dir=alone"], place).ok()
    assert rows(found[0]) == rows(place / "alone")
