"""Trials that share a device: as many at once as were asked for, each with the result that it has alone."""

import pytest
from sweeps import OWN_MODEL, end, start, summary, trials, weights

from launcher.sweep.packing import memory_settings


@pytest.mark.soak
def test_trials_beside_each_other_end_as_they_do_alone(place):
    """One needs the device for itself, which shows when it runs; another fails for a reason of its own, once."""
    words = ["+model.mode=ok,full,raise", "optimizer=sgd,adam", "hydra.launcher.devices=1", *OWN_MODEL]
    ends = {}
    for count in (1, 3):
        given = [*words, f"hydra.launcher.trials_per_device={count}", f"hydra.sweep.dir=by{count}"]
        status, out, err = end(start(given, place))
        assert status == 1 and err.count("FAILED") == 2 and err.count("a wheel came off") == 2, (out, err)
        assert out.count("ran out of memory beside others") == (2 if count > 1 else 0)
        at_first = out.partition(" in ")[0].count("started on cpu 0")  # before the first has ended
        assert at_first == count
        found = {name: path for name, path in trials(place / f"by{count}").items() if "raise" not in name}
        assert len(found) == 4 and all(summary(path)["status"] == "finished" for path in found.values())
        assert not any((path / "failed.json").exists() for path in found.values())
        ends[count] = {name: (weights(path), (path / "metrics.jsonl").read_text()) for name, path in found.items()}
    assert ends[1] == ends[3]


def test_what_changes_the_memory_of_a_trial():
    settings = {
        "seed": 1,
        "optimizer": {"name": "adam", "lr": 0.1},
        "wandb": {"name": "a"},
        "batch": {"global_size": 64},
    }
    same = {"seed": 2, "optimizer": {"name": "adam", "lr": 0.2}, "wandb": {"name": "b"}, "batch": {"global_size": 64}}
    assert memory_settings(settings) == memory_settings(same) == {"optimizer.name": "adam", "batch.global_size": 64}
    assert memory_settings(settings | {"batch": {"global_size": 32}}) != memory_settings(settings)
