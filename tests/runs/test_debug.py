"""The options of conf/debug, and limit_batches, in whole runs on one and on two processes."""

import json

import pytest
from processes import command, rows, summary, train

OPTIONS = {"default": 21, "fdr": 1, "limit": 30, "overfit": 200, "profiler": 21}  # to the updates that it makes


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option(option, world, tmp_path):
    words = [f"debug={option}", "device=cpu", "threads=1", "data.shift=0", "hydra.run.dir=run"]
    run = train(words, tmp_path, world).ok()
    done, record = summary(tmp_path / "run"), rows(tmp_path / "run")
    assert (done["status"], done["step"], done["world_size"]) == ("finished", OPTIONS[option], world), run.out()
    assert [row["step"] for row in record] == list(range(1, OPTIONS[option] + 1)), "each step is logged"
    assert "test/accuracy" in done["final"] and not (tmp_path / "run/wandb").exists()
    assert (tmp_path / "run/trace.json").exists() == (option == "profiler")
    if option == "fdr":
        assert "eval/loss" in record[0] and [*(tmp_path / "run/checkpoints").iterdir()]
    if option == "overfit":
        assert record[-1]["train/loss"] < 0.02 < 2 < record[0]["train/loss"]


def test_runs_of_debug_options_have_a_directory_of_their_own(tmp_path):
    train(["debug=fdr", "device=cpu"], tmp_path).ok()
    (directory,) = (tmp_path / "outputs").iterdir()
    assert directory.name == "debug"


def test_limited_batches_are_the_same_on_any_ranks_and_in_an_evaluation(tmp_path):
    words = ["limit_batches=2", "batch.global_size=30", "epochs=2", "threads=1", "device=cpu"]
    for world in (1, 2, 3):
        train([*words, f"hydra.run.dir=on{world}"], tmp_path, world, name=f"io{world}").ok()
    samples = json.loads((tmp_path / "on1/data.json").read_text())["parts"]
    assert {name: part["samples"] for name, part in samples.items()} == {"train": 60, "validation": 60, "test": 60}
    one = rows(tmp_path / "on1")
    for world in (2, 3):
        assert rows(tmp_path / f"on{world}")[-1] == pytest.approx(one[-1], rel=1e-4)
    command("evaluate", ["run_dir=on1", "device=cpu"], tmp_path, name="evaluate").ok()
    measured = json.loads((tmp_path / "on1/evaluation_test.json").read_text())
    best = summary(tmp_path / "on1")["best"]
    assert measured["metrics"]["accuracy"] == pytest.approx(best["test/accuracy"])
