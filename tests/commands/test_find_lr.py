"""The range test: its arithmetic against closed forms, and whole sweeps on one and two processes."""

import csv
import json
import math
import os
import shlex
import sys

import numpy as np
import pytest
from kill_loop import OWN, place
from processes import REPOSITORY, rows, start, summary, train

from launcher.commands.find_lr import GROWTH, MEMORY, Enough, Sweep, smooth, suggest

WORDS = ["data._target_=own.load", "model.hidden=[8]", "batch.global_size=14", "threads=1", "hydra.run.dir=sweep"]


def _find_lr(argv, working_directory):
    from launcher.commands import find_lr

    os.chdir(working_directory)
    sys.path.insert(0, str(working_directory))
    sys.argv = [str(REPOSITORY / "launcher/__main__.py"), *argv]
    find_lr.main()


def find_lr(argv, directory, world=1):
    return start(_find_lr, (argv, directory), directory / "io", world)


def test_smoothing_is_the_weighted_mean_of_the_losses_so_far():
    losses = np.random.RandomState(0).rand(30).tolist()
    for n, value in enumerate(smooth(losses), start=1):
        weights = [MEMORY ** (n - i) for i in range(1, n + 1)]
        assert value == pytest.approx(np.average(losses[:n], weights=weights))


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    rates = np.geomspace(1e-6, 10, 141)
    for steepest in (1e-4, 1e-2, 0.3):
        fall = 1 / (1 + (rates / steepest) ** 2)  # steepest over log(rate) at `steepest` itself
        found = suggest(rates.tolist(), (fall + 0.2 * rates).tolist())
        assert found == pytest.approx(steepest, rel=0.3)
    assert suggest(rates.tolist(), (1 + rates).tolist()) is None
    assert suggest(rates[:20].tolist(), [1.0] * 20) is None


def test_a_sweep_ends_where_the_loss_has_grown_fourfold_or_with_its_steps(tmp_path):
    for losses, end in (([1.0] * 20, 20), ([2.0, 1.0, 1.0, 30.0, 60.0, 90.0], 4), ([1.0, float("inf")], 2)):
        sweep = Sweep(20)
        for step, loss in enumerate(losses, start=1):
            if step < end:
                sweep(tmp_path, step, {"train/loss": loss})
            else:
                with pytest.raises(Enough):
                    sweep(tmp_path, step, {"train/loss": loss})
                break


def _sweep_of(directory):
    with (directory / "sweep/lr_range.csv").open() as file:
        table = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    return table, json.loads((directory / "sweep/lr_range.json").read_text())


def test_a_sweep_and_the_run_that_it_suggests(tmp_path):
    """Rates in a geometric series, an end at four times the smallest loss, and the same on two processes."""
    settings = ["optimizer=sgd", "find_lr.max=1e4", "find_lr.steps=60", "checkpoint.best=eval/accuracy",
                "checkpoint.best_mode=max", "scheduler=one_cycle", "ema_decay=0.9", "eval_every=3"]  # fmt: skip
    found = {}
    for world in (1, 2):
        directory = place(tmp_path / str(world), OWN)
        run = find_lr([*WORDS, *settings], directory, world).ok()
        found[world], content = _sweep_of(directory)
        factor = (1e4 / 1e-6) ** (1 / 59)
        assert [row[0] for row in found[world]] == pytest.approx([1e-6 * factor**i for i in range(len(found[world]))])
        record = rows(directory / "sweep")
        assert [row["lr"] for row in record] == pytest.approx([row[0] for row in found[world]], rel=1e-9)
        assert [row["train/loss"] for row in record] == [row[1] for row in found[world]]
        smoothed = [row[2] for row in found[world]]
        assert len(found[world]) < 60 and smoothed[-1] > GROWTH * min(smoothed[:-1]), "the loss has exploded"
        assert 1e-4 < content["suggestion"] < content["smallest_loss_at"]
        assert (directory / "sweep/lr_range.png").read_bytes().startswith(b"\x89PNG")
        assert not (directory / "sweep/checkpoints").exists() and not (directory / "sweep/summary.json").exists()
        command = shlex.split(run.out().strip().splitlines()[-1])
        assert command[:4] == ["python", "-m", "launcher", "train"]
        assert command[-1] == f"optimizer.lr={content['suggestion']:.3g}"
    assert len(found[1]) == pytest.approx(len(found[2]), abs=2)
    for one, other in zip(found[1][:30], found[2][:30], strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    words = [word for word in command[4:] if not word.startswith("ema_decay")]
    train([*words, "epochs=4", "hydra.run.dir=run"], tmp_path / "1", name="io1").ok()
    assert summary(tmp_path / "1/run")["final"]["test/accuracy"] > 0.5, "a rate that it suggests trains"


@pytest.mark.parametrize("world", [1, 2])
def test_a_loss_that_is_not_finite_ends_a_sweep_too(world, tmp_path):
    directory = place(tmp_path, OWN)
    words = ["loss=mse", "data._target_=own.load", "find_lr.max=1e30", "find_lr.steps=12", "optimizer.momentum=0"]
    code = OWN.replace('"classification"', '"regression"').replace("y = torch", "y0 = torch")
    code = code.replace("y[:, None], y,", "y0[:, None], y0[:, None].float(),").replace("classes, part(n)", "1, part(n)")
    (directory / "own.py").write_text(code)
    run = find_lr([*WORDS, *words], directory, world).ok()
    table, _ = _sweep_of(directory)
    assert 2 <= len(table) < 12 and all(math.isfinite(row[1]) for row in table)
    assert "Traceback" not in run.err() and "sweep " in run.out()


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["find_lr.min=1", "find_lr.max=0.1"], ["find_lr.min=1", "find_lr.max=0.1", "smaller"]),
        (["find_lr.steps=3"], ["find_lr.steps=3", "at least 10"]),
        (["-m", "optimizer=sgd,adam"], ["-m", "one run"]),
        (["optimizer=sgdd"], ["Did you mean sgd?"]),
    ],
)
def test_wrong_input(words, texts, tmp_path):
    run = find_lr(words, place(tmp_path, OWN)).wait()
    assert run.status == [2] and "Traceback" not in run.err()
    assert all(text in run.err() for text in texts), run.err()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["io", "own.py"]
