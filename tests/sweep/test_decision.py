import json

import pytest
from sweeps import end, start

QUICK = ["model.hidden=[8]", "epochs=1", "wandb.mode=disabled", "hydra.sweep.dir=grid"]
DECIDE = ["hydra.sweeper.decide=0.05", "hydra.sweeper.seeds=5"]


def seeds(place):
    return sorted(path.parent.name.rpartition("seed=")[2][0] for path in place.glob("grid/*/summary.json"))


@pytest.mark.soak
def test_seeds_are_added_until_it_is_decided(place):
    """A difference as large as day and night needs three; two equal models need all, after a stop too."""
    status, out, err = end(start([*QUICK, *DECIDE, "optimizer.lr=0.1,0.0001"], place))
    assert status == 0 and "look       3 seeds: 1 of 1 pairs are decided" in out, (out, err)
    assert seeds(place) == sorted("001122")
    status, out, err = end(start([*QUICK, *DECIDE, "optimizer.lr=0.1,0.0001"], place))
    assert status == 0 and " started on" not in out and "look       3 seeds: 1 of 1" in out, (out, err)

    words = [*QUICK[:-1], *DECIDE, "log_every=10,20", "hydra.sweep.dir=alike"]  # which changes nothing
    status, out, err = end(start(words, place))
    assert status == 0 and "look       5 seeds: 0 of 1 pairs are decided" in out, (out, err)
    assert "no difference shown" in out
    known = json.loads((place / "alike/grid.json").read_text())
    assert known["decides"] == {"level": 0.05, "seeds": 5} and len(known["points"]) == 10


WRONG = {
    "no limit": (["seed=0", "optimizer=sgd,adam", DECIDE[0]], "hydra.sweeper.seeds=20"),
    "too few": (["optimizer=sgd,adam", DECIDE[0], "hydra.sweeper.seeds=2"], "at least 3"),
    "nothing to compare": ([*DECIDE], "there is one"),
    "a share": (["optimizer=sgd,adam", "hydra.sweeper.decide=5", DECIDE[1]], "hydra.sweeper.decide=5"),
    "a wrong setting": (["optimizer.lr=0.1,-1", *DECIDE], "optimizer.lr=-1"),
}


@pytest.mark.soak
def test_wrong_input_is_refused(place):
    running = {what: start([*QUICK, *words], place) for what, (words, _) in WRONG.items()}
    for what, process in running.items():
        status, _, err = end(process)
        assert status == 2 and err.startswith("error: ") and WRONG[what][1] in err, (what, err)
    assert not (place / "grid").exists()
