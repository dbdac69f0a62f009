"""Signals and kills while a GPU computes, for one process and for two that share it."""

import json
import signal
import time

import pytest
from kill_loop import RUN, newest, place, same_bits
from on_gpu import run
from processes import rows, summary
from test_stopping import LONG, started

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_to_one_rank_stops_all_at_one_step(world, number, tmp_path):
    long = run(LONG, place(tmp_path), world)
    started(long, tmp_path, 20)
    asked = time.monotonic()
    long.signal(world - 1, number)
    long.ok(60)
    assert time.monotonic() - asked < 20
    stopped = json.loads((tmp_path / "run/stopped.json").read_text())
    assert stopped["step"] == int(newest(tmp_path).name[5:]) == summary(tmp_path / "run")["step"]
    assert rows(tmp_path / "run")[-1]["step"] <= stopped["step"] and stopped["reason"] == number.name


@pytest.mark.parametrize("world", [1, 2])
def test_a_rank_that_is_killed_ends_all_and_nothing_is_lost(world, tmp_path):
    calm, killed = place(tmp_path / "calm"), place(tmp_path / "killed")
    words = [*(word for word in RUN if not word.startswith("epochs")), "epochs=40"]
    run(words, calm, world).ok(180)
    hit = run(words, killed, world)
    started(hit, killed, 15)
    asked = time.monotonic()
    hit.signal(world - 1)
    hit.wait(60)
    assert time.monotonic() - asked < 30
    assert hit.status[-1] == -signal.SIGKILL and all(status == 1 for status in hit.status[:-1])
    if world == 2:
        assert "rank 1" in hit.err(0)
    run(words, killed, world, "io1").ok(180)
    same_bits(calm, killed)
