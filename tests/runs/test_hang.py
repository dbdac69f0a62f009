"""A main thread that hangs, a checkpoint slower than `timeout`, a rank that dies while another one saves.

NCCL's own watchdog ends a process from a thread of its own. gloo has none, so a stand-in does what that does: it calls
abort() once the main thread has been in a collective for longer than the process group's timeout.
"""

import signal
import threading
import time

import pytest
import torch
from kill_loop import OWN, newest, place, same_bits
from processes import train
from test_stopping import FAULT, FAULTY, LONG

from launcher.distributed.pulse import Onlooker, Pulse, pulse, share

ABORTS = """
import os, sys, threading, time
def watch_like_nccl():
    import torch.distributed as dist
    from launcher.distributed.pulse import pulse
    since = None
    while True:
        time.sleep(0.2)
        since = (since or time.monotonic()) if pulse.meets() else None
        if since and dist.is_initialized():
            backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
            if time.monotonic() - since > backend.options._timeout.total_seconds():
                os.write(2, b"ABORT\\n")
                os.abort()
threading.Thread(target=watch_like_nccl, daemon=True).start()
"""
SHORT = "from launcher.distributed import process_group\nprocess_group.LONGER = {}\n"
SLOW = """
import pathlib, time
from launcher.training import checkpoint; from launcher.distributed import watch
watch.WAIT = 1.0  # so that who waits asks more than once
write = checkpoint.write_checkpoint
def slowly(directory, step, model, state):
    pathlib.Path(f"writing.{step}").touch()
    time.sleep(SECONDS)
    return write(directory, step, model, state)
checkpoint.write_checkpoint = slowly
"""


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_a_hang_inside_of_a_collective_is_explained_before_anything_aborts(victim, tmp_path):
    """Two ranks wait in the reduction of a step for the third, which sleeps in its model."""
    fault = {"FAULT": "sleep", "FAULT_RANK": str(victim)}
    run = train([*FAULTY, "timeout=4"], place(tmp_path, FAULT + ABORTS), 3, fault)
    run.wait(40)
    said = "".join(run.err(rank) for rank in range(3))
    assert run.status == [1, 1, 1], said
    assert f"rank {victim} hangs: it has not moved for" in said and "ABORT" not in said
    assert "at step 20, in forward (own.py, line" in said, "each update has two micro-batches"
    assert f"rank {(victim + 1) % 3} is at step 20, in _engine_run_backward" in said


@pytest.mark.soak
def test_the_stand_in_would_have_aborted(tmp_path):
    fault = {"FAULT": "sleep", "FAULT_RANK": "1"}
    run = train([*FAULTY, "timeout=20"], place(tmp_path, FAULT + ABORTS + SHORT.format(-15)), 3, fault)
    run.wait(60)
    assert -signal.SIGABRT in run.status and "ABORT" in run.err(0) + run.err(2)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_checkpoint_may_take_longer_than_the_timeout(world, tmp_path):
    """Each save waits for the one before it, rank 0 alone knows of that, and the last one is waited for at the end."""
    words = [*(word for word in LONG if not word.startswith(("epochs", "checkpoint"))), "epochs=2", "timeout=3",
             "checkpoint.every=8", "checkpoint.keep=1"]  # fmt: skip
    slow, plain = tmp_path / "slow", tmp_path / "plain"
    for directory, code in ((slow, SLOW.replace("SECONDS", "6")), (plain, "")):
        directory.mkdir()
        train(words, place(directory, OWN + ABORTS + code), world).ok(90)
    same_bits(slow, plain)


def test_a_rank_that_is_killed_takes_no_checkpoint_along(tmp_path):
    words = [*(word for word in LONG if not word.startswith(("checkpoint", "scheduler"))), "scheduler=constant"]
    place(tmp_path, OWN + ABORTS + SLOW.replace("SECONDS", "3"))
    run = train([*words, "checkpoint.every=30", "log_every=1"], tmp_path, 2)
    deadline = time.monotonic() + 60
    while not (tmp_path / "writing.30").exists():
        assert time.monotonic() < deadline, run.err()
        time.sleep(0.02)
    run.signal(1)
    run.wait(30)
    assert run.status[0] == 1 and "rank 1 (pid" in run.err(0)
    assert newest(tmp_path).name == "step_00000030", "it was being written when its rank had to end"
    again = train([*words, "max_steps=40"], tmp_path, 2)
    again.ok()
    assert "at step 30 of 40" in again.out()


def test_what_moves_and_what_does_not(monkeypatch):
    """As another thread sees it: the main thread sleeps, leaves a line, begins a batch, waits by right."""
    seen = []

    def look():
        looks = Onlooker()
        while not seen or seen[-1] != "end":
            seen.append(looks.seconds_still())
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(0.5)
    assert max(seen) > 0.3
    seen.append("begun")
    for _ in range(10):
        pulse.batches += 1
        time.sleep(0.05)
    begun = seen.index("begun")
    assert max(s for s in seen[begun + 3 :] if s != "begun") < 0.3
    seen.append("waits")
    with pulse.waits("a test"):
        assert pulse.place() == "waiting for a test"
        time.sleep(0.5)
    waits = seen.index("waits")
    assert max(seen[waits + 3 : -1]) < 0.3
    seen.append("end")
    thread.join()


def test_a_place_in_a_library_names_who_called_it():
    places = []
    timer = threading.Timer(0.2, lambda: places.append((pulse.place(), pulse.meets())))
    timer.start()
    torch.utils.data.DataLoader([0.0] * 4, collate_fn=lambda _: time.sleep(0.5)).__iter__().__next__()
    timer.join()
    ((place, meets),) = places
    assert "in <lambda> (test_hang.py, line" in place and not meets


def test_another_process_is_told(monkeypatch):
    beat = 0.2
    monkeypatch.setattr("launcher.distributed.pulse.BEAT", beat)
    figures = [0.0, 0.0, 0.0]
    before = pulse.step, pulse.stopping
    pulse.step, pulse.stopping = 3, lambda: 12.5
    moved = []
    timers = [threading.Timer(n * beat, lambda: moved.append(figures[0])) for n in (1.5, 3.5, 5.5)]
    timers.append(threading.Timer(4.2 * beat, lambda: setattr(pulse, "batches", pulse.batches + 1)))
    try:
        share(figures)
        for timer in timers:
            timer.start()
        time.sleep(6 * beat)
    finally:
        pulse.step, pulse.stopping = before
    assert figures[1:] == [1.0, 12.5]
    assert moved[0] == moved[1] < moved[2], "it sleeps, and then begins a batch"


def test_a_new_pulse_has_not_begun_to_train():
    assert Pulse().step is None and Pulse().stopping() == 0.0


def test_a_process_that_was_suspended_has_not_hung(monkeypatch):
    monkeypatch.setattr("launcher.distributed.pulse.GAP", 0.3)
    still = []

    def look():
        looks = Onlooker()
        for pause in (0.1, 0.1, 0.1, 0.5, 0.1):
            looks.seconds_still()
            time.sleep(pause)
            still.append(looks.seconds_still())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert still[2] > 0.2 and still[3] == 0.0, "nobody looked for longer than between two looks"
