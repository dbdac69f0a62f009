"""Votes to stop that are read late, as on a GPU: on a CPU by the same code, with the number of updates that one has."""

import json
import math
import signal
import time

import pytest
import torch
from kill_loop import OWN, newest, place
from processes import rows, train
from test_stopping import LONG, started

from launcher.training.votes import Votes

LATE = "from launcher.training import votes\nvotes.MOST['cpu'] = 8\n"
SLOW = (
    OWN
    + LATE
    + """
import time
class Net(torch.nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer = torch.nn.Linear(5, num_outputs)
    def forward(self, x):
        time.sleep(0.1 * self.training)
        return self.layer(x)
"""
)


def cast(votes, seconds, vote=0.0):
    return votes.add(torch.tensor([vote, seconds]))


@pytest.mark.parametrize("seconds", [1e-4, 0.03, 0.049, 0.124, 0.25, 0.26, 20.0, math.inf])
def test_a_vote_waits_for_a_quarter_of_a_second_at_most(seconds):
    votes = Votes(8, pinned=False)
    for _ in range(30):
        cast(votes, seconds)
    assert votes.lag == (0 if math.isinf(seconds) else min(8, math.floor(0.25 / seconds)))
    asked = 1
    while not cast(votes, seconds, vote=0.5 * (asked == 1)):
        asked += 1
    assert asked == votes.lag + 1
    assert votes.stopping_seconds == pytest.approx((votes.lag + 1) * seconds)


def test_the_first_vote_of_a_run_is_read_at_once():
    assert cast(Votes(8, pinned=False), 0.0, vote=1.0)
    assert cast(Votes(0, pinned=False), 1e-4, vote=1.0)


def test_an_evaluation_between_two_updates_changes_no_waiting():
    votes = Votes(8, pinned=False)
    for update in range(40):
        cast(votes, 30.0 if update % 10 == 5 else 0.01)
        assert votes.lag == 8 or update < 2


def test_when_updates_become_slow_the_votes_that_wait_are_read():
    votes = Votes(8, pinned=False)
    for _ in range(20):
        assert not cast(votes, 0.01)
    assert votes.lag == 8 and not cast(votes, 5.0, vote=1.0)
    assert any(cast(votes, 5.0) for _ in range(8)), "it would be 40 s else"


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("exact", [False, True], ids=["ddp", "exact"])
def test_all_ranks_stop_after_the_same_update(world, exact, tmp_path):
    words = [*LONG, *(["exact_across_devices=true", f"canonical_shards={world}"] if exact else [])]
    run = train(words, place(tmp_path, OWN + LATE), world)
    started(run, tmp_path, 10)
    run.signal(world - 1, signal.SIGTERM)
    run.ok(30)
    stopped = json.loads((tmp_path / "run/stopped.json").read_text())
    assert stopped["step"] == int(newest(tmp_path).name[5:]) and stopped["reason"] == "SIGTERM"


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_slow_updates_are_not_waited_for(first, tmp_path):
    """0.3 s each and more, of which eight would be three seconds."""
    words = [word for word in LONG if not word.startswith("model.")]
    run = train([*words, "model._target_=own.Net", "log_every=1"], place(tmp_path, SLOW), 2)
    started(run, tmp_path, 1 if first else 8)
    step = rows(tmp_path / "run")[-1]["step"]
    asked = time.monotonic()
    run.signal(1, signal.SIGTERM)
    while not (tmp_path / "run/stopped.json").exists():
        assert time.monotonic() - asked < 30
        time.sleep(0.02)
    run.ok(30)
    assert json.loads((tmp_path / "run/stopped.json").read_text())["step"] <= step + 3
