"""Whether a main thread moves on, as another thread and another process see it."""

import threading
import time

import torch

from launcher.distributed.pulse import Pulse, StallDetector, pulse, share


def test_what_moves_and_what_does_not(monkeypatch):
    """As another thread sees it: the main thread sleeps, leaves a line, begins a batch, waits by right."""
    seen = []

    def look():
        looks = StallDetector()
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
    assert "in <lambda> (test_pulse.py, line" in place and not meets


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
        looks = StallDetector()
        for pause in (0.1, 0.1, 0.1, 0.5, 0.1):
            looks.seconds_still()
            time.sleep(pause)
            still.append(looks.seconds_still())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert still[2] > 0.2 and still[3] == 0.0, "nobody looked for longer than between two looks"
