"""Early stopping: where a plain reading of the record says, on any number of ranks, and exact in resume."""

import signal

import pytest
from kill_loop import place, same_bits
from processes import rows, summary, train
from test_resume import FAULTY, RUN_FAULTY

from launcher.training.checkpoint import Progress

PATIENCE, MIN_DELTA = 2, 0.05
STOPPING = ["early_stopping.metric=eval/loss", f"early_stopping.patience={PATIENCE}",
            f"early_stopping.min_delta={MIN_DELTA}"]  # fmt: skip
WORDS = [*RUN_FAULTY, *STOPPING]
CALLS = {"per epoch": 22, "steps": 5}  # forwards of an epoch of kill_loop's run on one rank, and its updates


@pytest.mark.parametrize(
    ("mode", "values", "patience", "min_delta", "ends"),
    [
        ("min", [3, 2, 1, 1, 1], 2, 0, 5),
        ("min", [3, 2, 2.5, 1, 1.5, 1.2], 2, 0, 6),
        ("min", [3, 2.9, 2.8, 2.7, 2.6], 2, 0.5, 3),
        ("min", [3, 2.7, 2.4, 2.1], 2, 0.5, None),  # 2.4 is 0.6 better than 3
        ("max", [0.1, 0.5, 0.5, 0.6, 0.6], 1, 0, 3),
        ("max", [-5, -4, -3], 1, 0, None),
        ("min", [float("nan")] * 3, 3, 0, 3),
        ("min", [float("nan"), 1, 0.5], 2, 0, None),
    ],
)
def test_it_ends_after_patience_evaluations_without_improvement(mode, values, patience, min_delta, ends):
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress.watch({"eval/x": value}, "eval/x", mode, patience, min_delta)
        assert (progress.ended is not None) == (number == ends)
        if progress.ended:
            assert "eval/x" in progress.ended and f"{patience} evaluations" in progress.ended
            break
    unwatched = Progress()
    unwatched.watch({}, None, mode, 1, 0)
    assert unwatched == Progress()


def _expected(losses):
    """The evaluation at which a run ends, by its record: the first whose `PATIENCE` predecessors did not do better."""
    best, since = float("inf"), 0
    for step, loss in losses:
        since = 0 if loss < best - MIN_DELTA else since + 1
        best = min(best, loss) if since == 0 else best
        if since == PATIENCE:
            return step
    raise AssertionError("the run is no example")


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run that ends early, and one of the same settings that does not."""
    early, whole = (place(tmp_path_factory.mktemp(name), FAULTY) for name in ("early", "whole"))
    train(WORDS, early).ok()
    train(RUN_FAULTY, whole).ok()
    return early, whole


def test_it_ends_as_finished_where_the_record_of_the_whole_run_says(calm):
    early, whole = calm
    end = _expected([(row["step"], row["eval/loss"]) for row in rows(whole / "run") if "eval/loss" in row])
    found = summary(early / "run")
    assert 10 < end < 60 and found["step"] == end and found["status"] == "finished"
    assert "eval/loss" in found["reason"] and "2 evaluations" in found["reason"]
    assert "test/accuracy" in found["final"] and found["reason"] in (early / "run/train.log").read_text()
    before = [row for row in rows(whole / "run") if row["step"] < end]
    assert rows(early / "run")[: len(before)] == before, "the schedule and everything else are those of the whole run"
    assert [row["step"] for row in rows(early / "run")][len(before) :] == [end]
    assert "reason" not in summary(whole / "run")


def test_started_again_it_is_finished_already(calm):
    early, _ = calm
    assert "finished already" in train(WORDS, early, name="io-again").ok().out()


@pytest.mark.parametrize("where", ["before", "in the last step"])
def test_stopped_and_resumed_it_ends_at_the_same_step_with_the_same_bits(where, calm, tmp_path):
    """In the last step the evaluation that ends the run is put off to the next start."""
    early, _ = calm
    end = summary(early / "run")["step"]
    step = end - 7 if where == "before" else end
    epochs, rest = divmod(step, CALLS["steps"])
    call = epochs * CALLS["per epoch"] - 1 if rest == 0 else epochs * CALLS["per epoch"] + 5 * rest - 1
    directory = place(tmp_path, FAULTY)
    train(WORDS, directory, environment={"FAULT": f"{call} {signal.SIGTERM:d}"}).ok()
    stopped = summary(directory / "run")
    assert stopped["status"] == "stopped"
    assert stopped["step"] == (step + 1 if where == "before" else end)  # a vote is taken as a step begins
    train(WORDS, directory, name="io1").ok()
    same_bits(early, directory)
    assert summary(directory / "run")["reason"] == summary(early / "run")["reason"]


def test_killed_between_its_last_checkpoint_and_its_summary(calm, tmp_path):
    early, _ = calm
    directory = place(tmp_path, FAULTY)
    train(WORDS, directory).ok()
    (directory / "run/summary.json").unlink()
    train(WORDS, directory, name="io1").ok()
    same_bits(early, directory)


def test_every_rank_ends_at_the_same_step_also_by_a_metric_of_torchmetrics(tmp_path):
    """torchmetrics are computed on rank 0: all ranks must act on its figure."""
    words = [word for word in RUN_FAULTY if not word.startswith("model.dropout")]
    words += ["model.dropout=0", "metrics=[Accuracy]", "early_stopping.metric=eval/Accuracy", "early_stopping.mode=max",
              "early_stopping.patience=2", "checkpoint.best=eval/Accuracy", "checkpoint.best_mode=max"]  # fmt: skip
    alone, together = place(tmp_path / "alone", FAULTY), place(tmp_path / "together", FAULTY)
    train(words, alone).ok(120)
    train(words, together, world=2).ok(120)
    assert summary(alone / "run")["step"] == summary(together / "run")["step"] < 60
    assert summary(alone / "run")["reason"] == summary(together / "run")["reason"]
