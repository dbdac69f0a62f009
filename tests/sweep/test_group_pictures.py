import numpy as np
import pytest
from matplotlib.figure import Figure

from launcher.sweep.comparison import read_sweep
from launcher.sweep.group_pictures import draw_bands, draw_front, draw_parallel, parallel_names, positions


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_a_band_is_the_range_of_the_seeds_around_their_mean(made, axes):
    path, _ = made
    (path / "p2/metrics.jsonl").open("a").write('{"step": 3, "epoch": 3.0, "eval/loss": 9.0}\n')  # of one seed alone
    draw_bands(axes, read_sweep(path, None, None))
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert np.allclose(lines["1. 0.1 (3)"], [[1, 1], [2, 0.6]]) and lines["2. 0.01 (3)"][-1] == pytest.approx([2, 0.9])
    band = axes.collections[-1].get_paths()[0].vertices
    assert band[band[:, 0] == 2][:, 1].min() == pytest.approx(0.5) and band[band[:, 0] == 2][
        :, 1
    ].max() == pytest.approx(0.7)


def test_parallel_coordinates_end_at_the_mean(made, axes):
    path, _ = made
    for number in range(6):
        file = path / f"p{number}/.hydra/overrides.yaml"
        file.write_text(file.read_text().replace("]", f', "model.hidden={8 if number < 3 else 16}"]'))
    sweep = read_sweep(path, None, None)
    assert parallel_names(sweep) == ["optimizer.lr", "model.hidden"]
    draw_parallel(axes, sweep)
    best = [line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) == 3][-1]
    assert list(best) == [1, 0, 0]  # the greater learning rate, the smaller model, the least loss
    assert {text.get_text() for text in axes.texts} == {"0.1", "0.01", "8", "16", "0.6", "0.75", "0.9"}


def test_values_lie_in_order_and_many_numbers_at_their_distances():
    assert positions(["b", "10", "9", "a"]) == {"9": 0, "10": 1 / 3, "a": 2 / 3, "b": 1}
    found = positions([str(10.0**n) for n in range(13)])
    assert found["10000.0"] == pytest.approx(4 / 12)
    found = positions([str(n / 100) for n in range(1, 101)])  # as far apart, but evenly as they are
    assert found["0.5"] == pytest.approx(49 / 99)
    assert positions(["x"]) == {"x": 0}


def test_the_front_is_drawn_apart(made, axes):
    path, _ = made
    draw_front(axes, read_sweep(path, "eval/loss,eval/accuracy", None))
    others, _, front = axes.get_lines()
    assert np.allclose(front.get_xydata(), [[0.6, 0.4]]) and np.allclose(others.get_xydata(), [[0.9, 0.1]])
