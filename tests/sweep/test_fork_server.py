import os
import shutil
import signal
from pathlib import Path

import pytest
from sweeps import OWN_MODEL, end, start, trials, wait_for, weights


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.soak
def test_the_parent_of_all_trials_is_killed_and_no_trial_suffers(place):
    words = ["seed=0,1,2", "+model.delay=0.05", *OWN_MODEL, "epochs=2", "log_every=1"]
    disturbed = start(words, place)

    def parents():
        found = children(disturbed.pid)
        return [child for child in found if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]

    # Once while it imports torch and the first trial waits for it, once while trials run.
    for moment in (lambda: list(place.glob("grid/*")), lambda: len(list(place.glob("grid/*/metrics.jsonl"))) >= 2):
        wait_for(lambda now=moment: now() and parents(), disturbed)
        os.kill(parents()[0], signal.SIGKILL)
    status, out, err = end(disturbed)
    assert status == 0, (out, err)
    assert not list(place.glob("grid/*/failed.json"))
    calm = place / "calm"
    calm.mkdir(parents=True)
    shutil.copy(place / "own.py", calm)
    status, _, err = end(start(words, calm))
    assert status == 0, err
    for name, path in trials(place / "grid").items():
        assert weights(path) == weights(calm / "grid" / name), name
