"""Pictures from the record of a run: whole, long, odd."""

import math

import numpy as np
import pytest
from matplotlib.image import imread
from test_report import Page, write_rows

from launcher.run import curves
from launcher.run.curves import draw_curves
from launcher.run.report import write_report

pytestmark = pytest.mark.versions


def drawn(path):
    """Share of the pixels that have the colour of the training line, exactly or nearly."""
    pixels = imread(path)[..., :3]
    colour = np.asarray([int(curves.TRAIN[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return float((np.abs(pixels - colour).max(-1) < 0.1).mean())


def test_the_picture_shows_the_series(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": s, "train/loss": 1.0 / s} for s in range(1, 50)])
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png" and drawn(path) > 0.001


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 5, "train/loss": 0.5}],
        [{"step": 5, "train/loss": 0.5}, {"step": 6, "train/loss": 0.5}],
        [{"step": s, "train/loss": "nan" if s > 20 else 1.0 / s} for s in range(1, 40)],
        [{"step": s, "train/loss": "inf" if s % 7 == 0 else 1.0 / s} for s in range(1, 3000)],
        [{"step": s, "train/loss": 10.0**-s} for s in range(1, 12)],
    ],
    ids=["one point", "two points", "nan from 21", "inf at times", "many decades"],
)
def test_odd_series_are_drawn_without_a_warning(tmp_path, rows, recwarn):
    write_rows(tmp_path / "metrics.jsonl", rows)
    assert drawn(draw_curves(tmp_path)) > 0.00005
    Page(write_report(tmp_path).read_text())
    assert [str(w.message) for w in recwarn] == []


def test_a_logarithmic_axis_has_numbers(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": s, "train/loss": 10.0 ** (s / 10)} for s in range(1, 50)])
    draw_curves(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert not any("$" in text or "mathdefault" in text for text in page.text)
    assert "10" in page.text


def test_a_series_of_nan_alone_says_so(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": s, "train/loss": "nan"} for s in range(1, 300)])
    assert draw_curves(tmp_path).exists()
    assert any("NaN or inf" in text for text in Page(write_report(tmp_path).read_text()).text)


def test_a_peak_survives_thinning_and_the_order_is_kept():
    steps = np.arange(100_000)
    values = np.sin(steps / 500.0)
    values[[12_345, 77_777]] = 50.0, -50.0
    values[5000:5400] = math.nan
    x, y = curves.envelope(steps, values)
    assert len(x) <= 2 * curves.POINTS and (np.diff(x) > 0).all()
    assert np.nanmax(y) == 50.0 and np.nanmin(y) == -50.0
    assert x[np.nanargmax(y)] == 12_345 and np.isnan(y).any()
    assert (y[~np.isnan(y)] == values[x[~np.isnan(y)]]).all()


def test_smoothing_is_the_mean_of_the_finite_values_around():
    values = np.random.default_rng(0).normal(size=101)
    values[40] = math.nan
    smooth = curves._smooth(values, 10)
    for place in (0, 3, 38, 60, 100):
        assert smooth[place] == pytest.approx(np.nanmean(values[max(place - 5, 0) : place + 6]), rel=1e-9)
    assert np.isnan(smooth[40]) and np.isnan(curves._smooth(np.full(30, math.nan), 5)).all()
