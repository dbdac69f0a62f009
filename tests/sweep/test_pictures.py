from matplotlib.figure import Figure

from launcher.sweep.comparison import read_sweep
from launcher.sweep.pictures import draw, panels_of, svg_pictures


def lines(panel):
    axes = Figure().add_subplot()
    panel(axes)
    return axes, {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_the_curves_are_those_of_the_trials(made):
    path, _ = made
    curves, *_ = panels_of(read_sweep(path, None, None))
    axes, found = lines(curves)
    assert axes.get_title() == "eval/loss: the best 6 of 6"
    assert found["1. 0.1 0"] == [[1, 1], [2, 0.5]] and found["6. 0.01 2"] == [[1, 1], [2, 1]]


def test_an_effect_shows_mean_and_best(made):
    path, _ = made
    *_, effect, seed = panels_of(read_sweep(path, None, None))
    _, found = lines(effect)
    (x0, low), (x1, high) = found["mean"]
    assert (x0, x1) == (0, 1) and abs(low - 0.9) < 1e-9 and abs(high - 0.6) < 1e-9
    assert [round(y, 9) for _, y in found["best"]] == [0.8, 0.5]
    assert lines(seed)[0].get_lines()[-1].get_linestyle() == "None"  # between seeds a line would mean nothing


def test_nothing_is_drawn_of_nothing(made):
    path, _ = made
    for number in range(6):
        (path / f"p{number}/metrics.jsonl").unlink()
        (path / f"p{number}/summary.json").unlink()
    sweep = read_sweep(path, None, None)
    draw(sweep)
    assert svg_pictures(sweep) == [] and not (path / "grid.png").exists()


def test_a_setting_with_many_numbers_is_drawn_on_its_own_scale(made):
    path, _ = made
    for number in range(13):
        trial = path / f"r{number}"
        (trial / ".hydra").mkdir(parents=True)
        (trial / ".hydra/config.yaml").write_text("seed: 0\n")
        (trial / ".hydra/overrides.yaml").write_text(f"[optimizer.lr={10.0**-number}, seed=0]")
        (trial / "summary.json").write_text(f'{{"status": "finished", "final": {{"eval/loss": {number + 2}}}}}')
    *_, effect, _ = panels_of(read_sweep(path, None, None))
    axes, _ = lines(effect)
    points = axes.get_lines()[0].get_xydata().tolist()
    assert axes.get_xscale() == "log" and len(points) == 19 and [1e-5, 7.0] in points
