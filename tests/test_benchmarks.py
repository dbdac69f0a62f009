import importlib
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import compare, contenders, table
from benchmarks.table import Goal

PEERS = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def peers():
    """The scripts as they stand: each finds `workload` beside it."""
    sys.path.insert(0, str(PEERS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield [importlib.import_module(name) for name in ("workload", "sliced_loop", "dataloader_loop")]
    torch.set_num_threads(threads)
    sys.path.remove(str(PEERS))


@pytest.mark.parametrize("workload", ["mlp", "cnn"])
def test_the_hand_written_loops_do_the_same_work(peers, workload):
    """Same order of samples, same losses after the same steps, over the end of an epoch."""
    common, sliced, loader = peers
    generator = torch.Generator().manual_seed(3)
    part = torch.randn(20, 1, 28, 28, generator=generator), torch.randint(10, (20,), generator=generator)
    data = common.Data(part, part, part)
    order = torch.randperm(20, generator=generator)
    steps = common.WARM + 2
    options = common.Options(workload, steps, 8, 0, 1, False, 1, Path(), None)
    losses, clocks = [], []
    for train, arrangement in ((sliced.train, lambda n: order), (loader.train, order.tolist())):
        torch.manual_seed(0)
        clocks.append(common.Clock(steps))
        losses.append(common.measure(train(data, options, clocks[-1], arrangement), part)[0])
    untrained = common.measure(common.build_model(workload), part)[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] < 0.5 * untrained
    assert all(clock.done == steps and clock.steps_per_second > 0 for clock in clocks)


def test_the_models_are_those_of_the_claim(peers):
    build_model = peers[0].build_model
    size = {name: sum(p.numel() for p in build_model(name).parameters()) for name in ("mlp", "cnn")}
    assert size["mlp"] == 784 * 64 + 64 + 64 * 10 + 10
    assert size["cnn"] == 32 * 9 + 32 + 64 * 32 * 9 + 64 + 3136 * 128 + 128 + 1280 + 10


@pytest.fixture
def rounds():
    generator = np.random.default_rng(5)
    return [
        {"ours": {"rate": float(a)}, "theirs": {"rate": float(b)}}
        for a, b in zip(generator.normal(200, 20, 7), generator.normal(100, 10, 7), strict=True)
    ]


def test_medians_ratios_and_intervals_agree_with_numpy(rounds):
    ours, theirs = (np.array([r[name]["rate"] for r in rounds]) for name in ("ours", "theirs"))
    verdict = table.judge(Goal("", "s", "ours", "theirs", "rate", "at least", 1.5), rounds)
    ratios = ours / theirs
    assert verdict.value == pytest.approx(np.median(ratios))
    assert verdict.value != pytest.approx(np.median(ours) / np.median(theirs))  # the two are not the same thing
    drawn = np.random.default_rng(0).choice(ratios, (20_000, len(ratios)))
    assert (verdict.low, verdict.high) == pytest.approx(np.quantile(np.median(drawn, axis=1), [0.025, 0.975]), rel=0.02)
    assert table.judge(Goal("", "s", "ours", None, "rate", "at most", 1.0), rounds).value == np.median(ours)
    cells = [cell.strip() for cell in table.format_suite(_renamed(rounds)).splitlines()[2].split("|")]
    assert cells[2] == f"{np.median(ours):.0f} ({ours.min():.0f} to {ours.max():.0f})"


def _renamed(rounds):
    return [{name: {"steps_per_second": m["rate"]} for name, m in r.items()} for r in rounds]


@pytest.mark.parametrize(
    ("relation", "target", "met"),
    [("at least", 1.9, True), ("at least", 2.1, False), ("at most", 2.1, True), ("at most", 1.9, False)],
)
def test_a_goal_is_held_against_the_median(relation, target, met):
    rounds = [{"a": {"x": value}, "b": {"x": 1.0}} for value in (1.0, 2.0, 9.0)]
    assert table.judge(Goal("", "s", "a", "b", "x", relation, target), rounds).met is met


def test_a_difference_counts_only_beyond_the_noise():
    goal = Goal("", "s", "a", "b", "x", "no less than", 0.0)
    noisy = [{"a": {"x": a}, "b": {"x": 0.90}} for a in (0.89, 0.89, 0.905, 0.89, 0.91)]
    worse = [{"a": {"x": a}, "b": {"x": 0.90}} for a in (0.89, 0.88, 0.885, 0.89, 0.87)]
    assert table.judge(goal, noisy).met is True
    assert table.judge(goal, worse).met is False


def test_a_contender_that_failed_is_left_out_of_its_round(rounds):
    del rounds[2]["theirs"]
    goal = Goal("ours first", "s", "ours", "theirs", "rate", "at least", 1.5)
    verdict = table.judge(goal, rounds)
    left = [r["ours"]["rate"] / r["theirs"]["rate"] for i, r in enumerate(rounds) if i != 2]
    assert (verdict.rounds, verdict.value) == (6, pytest.approx(statistics.median(left)))
    absent = table.judge(Goal("absent", "s", "nobody", "theirs", "rate", "at least", 1.5), rounds)
    assert (absent.value, absent.met) == (None, None)
    assert "not measured" in table.format_goals([verdict, absent])


def test_every_goal_names_contenders_of_its_suite():
    for goal in compare.GOALS:
        names = {member.name for member in compare.SUITES[goal.suite][1]}
        names |= {"images": {"launcher", "ImageFolder"}, "commands": set(compare.COMMANDS)}.get(goal.suite, set())
        assert {goal.contender, goal.against or goal.contender} <= names, goal.what


def test_the_order_of_a_round_is_rotated_and_turned_around():
    orders = [compare.order_of(["a", "b", "c"], n) for n in range(6)]
    assert [o[0] for o in orders] == ["a", "a", "c", "c", "b", "b"]
    assert all(sorted(o) == ["a", "b", "c"] for o in orders)
    first = {pair: sum(o.index(pair[0]) < o.index(pair[1]) for o in orders) for pair in ("ab", "bc", "ac")}
    assert set(first.values()) == {3}


def test_a_run_of_the_launcher_is_read_from_its_directory(tmp_path):
    steps = 200
    (tmp_path / "summary.json").write_text(
        json.dumps({"status": "finished", "step": steps, "steps_per_second": 90.0, "final": {"test/accuracy": 0.8}})
    )
    # 100 steps/s, and a pause of one second (validation, a checkpoint) after step 100
    rows = [{"step": s, "time": 1000 + s / 100 + (s > 100), "data_wait": 0.25} for s in range(50, steps + 1, 50)]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = contenders.read_launcher(tmp_path, 990.0, steps)
    assert measured["steps_per_second"] == pytest.approx(100 / 2.0)  # from step 50 to 150
    assert measured["seconds_to_step_51"] == pytest.approx(10.5 + 1 / 50)
    assert (measured["data_wait"], measured["test_accuracy"]) == (0.25, 0.8)
    with pytest.raises(contenders.RunFailed, match="not 300"):
        contenders.read_launcher(tmp_path, 990.0, 300)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_is_measured_from_outside(tmp_path, terminal):
    code = "import sys; block = b'x' * (200 << 20); print(sys.stdout.isatty())"
    _, seconds, memory = contenders.execute(
        [sys.executable, "-c", code], tmp_path, 1, tmp_path / "log", 60, terminal=terminal
    )
    assert 0 < seconds < 60
    assert memory > 200
    assert (tmp_path / "log").read_text().split() == [str(terminal)]
    with pytest.raises(contenders.RunFailed, match="exit status 3"):
        contenders.execute([sys.executable, "-c", "exit(3)"], tmp_path, 1, tmp_path / "log", 60, terminal=terminal)


def test_the_same_seed_makes_the_same_jpeg_images(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    images = importlib.import_module("benchmarks.images")
    for folder in ("a", "b"):
        images.make_folder(tmp_path / folder, count=4, classes=2, seed=1)
    made = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert [str(path.parent) for path in made] == ["class_0", "class_0", "class_1", "class_1"]
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in made)
    assert all(set(pil.open(tmp_path / "a" / p).size) <= {500, 480, 375, 360, 333} for p in made)
    assert 20_000 < statistics.fmean((tmp_path / "a" / p).stat().st_size for p in made) < 200_000
