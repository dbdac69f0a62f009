"""Pictures and page from run directories as they occur: whole, stopped, broken, long, hostile."""

import html.parser
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from launcher.run import report
from launcher.run.report import draw_curves, write_report

pytestmark = pytest.mark.versions

HOSTILE = "<script>alert('x')</script>&\"$\\alpha_{$"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(html.parser.HTMLParser):
    """Tags, text and tables of a page; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.open, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def whole_run(run_dir, classes=("zero", "one", "two"), metric="accuracy", steps=60):
    (run_dir / ".hydra").mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "epoch": step / 20, "lr": 0.1 / step, "train/loss": 2 / step}
        if step % 20 == 0:
            row |= {"eval/loss": 3 / step, f"eval/{metric}": 1 - 1 / step, "eval/macro_f1": 1 - 1 / step}
        rows.append(row)
    write_rows(run_dir / "metrics.jsonl", rows)
    write_rows(run_dir / "timings.jsonl", [{"step": s, "time": 1.7e9 + s, "samples_per_second": 5e4} for s in (20, 40)])
    (run_dir / ".hydra" / "config.yaml").write_text(f"seed: 3\nname: {classes[0]}\n")
    k = len(classes)
    confusion = [[50 if a == b else (a + b) % 3 for b in range(k)] for a in range(k)]
    evaluation = {
        "part": "test",
        "metrics": {metric: 0.8125},
        "class_names": list(classes),
        "per_class_accuracy": [row[a] / sum(row) for a, row in enumerate(confusion)],
        "confusion": confusion,
    }
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    summary = {
        "status": "finished",
        "step": steps,
        "epoch": 3.0,
        "world_size": 4,
        "final": {"eval/loss": 0.05, f"test/{metric}": 0.8125},
        "best": {"eval/loss": 0.046875},
        "git_commit": "0123abc",
        "versions": {"torch": "2.99.1"},
    }
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return confusion


def test_the_page_says_everything_and_needs_nothing_else(tmp_path):
    confusion = whole_run(tmp_path / "run")
    path = write_report(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text())
    for expected in ("run", "finished", "0.8125", "0.046875", "eval/loss", "2.99.1", "0123abc", "world size", "4"):
        assert expected in page.text, expected
    assert "seed: 3\nname: zero" in page.text
    for value in np.asarray(confusion).ravel():
        assert str(value) in page.text
    assert f"{100 * 50 / sum(confusion[0]):.1f} %" in page.text
    assert page.tags.count("svg") == 5  # loss, accuracy, macro_f1, learning rate, speed
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    outside = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href") and not v.startswith("#")]
    assert outside == []
    assert ("meta", "name", "viewport") in page.attributes  # else a phone shows it at the size of a desk
    assert "prefers-color-scheme: dark" in path.read_text()


def test_ids_of_the_pictures_do_not_collide(tmp_path):
    whole_run(tmp_path / "run")
    page = Page(write_report(tmp_path / "run").read_text())
    used = {value[1:] for _, name, value in page.attributes if name == "xlink:href"}
    used |= {value[5:-1] for _, name, value in page.attributes if name == "clip-path"}
    ids = [value for _, name, value in page.attributes if name == "id" and value in used]
    assert sorted(ids) == sorted(used) and len(used) > 10


def test_axes_and_letters_take_the_colour_of_the_page(tmp_path):
    whole_run(tmp_path / "run")
    text = write_report(tmp_path / "run").read_text()
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "currentColor" in pictures
    assert not re.search(r"#(000000|ffffff|010203)", pictures)  # black letters in the dark, a white box around


def test_every_text_is_escaped(tmp_path):
    run_dir = tmp_path / "a&<b>"
    whole_run(run_dir, classes=(HOSTILE, "b"), metric=HOSTILE)
    summary = json.loads((run_dir / "summary.json").read_text())
    summary |= {"status": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    assert draw_curves(run_dir).exists()
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert "script" not in page.tags and "b>" not in page.tags
    assert "<script" not in text.lower()
    assert page.text.count(HOSTILE) >= 6  # shown as it is: class twice, metric, status, version, fact
    assert "a&<b>" in page.text


def test_numbers_smuggled_in_as_text_are_escaped_too(tmp_path):
    whole_run(tmp_path / "run")
    evaluation = {"part": HOSTILE, "metrics": {"accuracy": HOSTILE}, "confusion": None, "per_class_accuracy": [HOSTILE]}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    text = write_report(tmp_path / "run").read_text()
    assert "<script" not in text.lower()
    Page(text)


@pytest.mark.parametrize("content", [None, "", "{", '{"step": 1, "tr', "[1, 2]", '{"step": 1}\n'])
def test_a_run_that_did_not_get_far_still_has_a_page(tmp_path, content):
    if content is not None:
        for name in ("metrics.jsonl", "timings.jsonl", "summary.json", "evaluation.json"):
            (tmp_path / name).write_text(content)
    assert draw_curves(tmp_path) is None
    page = Page(write_report(tmp_path).read_text())
    assert "not finished" in page.text and "svg" not in page.tags


def drawn(path):
    """Share of the pixels that have the colour of the training line, exactly or nearly."""
    pixels = imread(path)[..., :3]
    colour = np.asarray([int(report.TRAIN[place : place + 2], 16) / 255 for place in (1, 3, 5)])
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
    x, y = report._envelope(steps, values)
    assert len(x) <= 2 * report.POINTS and (np.diff(x) > 0).all()
    assert np.nanmax(y) == 50.0 and np.nanmin(y) == -50.0
    assert x[np.nanargmax(y)] == 12_345 and np.isnan(y).any()
    assert (y[~np.isnan(y)] == values[x[~np.isnan(y)]]).all()


def test_smoothing_is_the_mean_of_the_finite_values_around():
    values = np.random.default_rng(0).normal(size=101)
    values[40] = math.nan
    smooth = report._smooth(values, 10)
    for place in (0, 3, 38, 60, 100):
        assert smooth[place] == pytest.approx(np.nanmean(values[max(place - 5, 0) : place + 6]), rel=1e-9)
    assert np.isnan(smooth[40]) and np.isnan(report._smooth(np.full(30, math.nan), 5)).all()


def test_many_classes_list_what_is_confused_most(tmp_path):
    names = [f"class {n}" for n in range(120)]
    confusion = np.eye(120, dtype=int) * 50
    confusion[7, 9] = 31
    confusion[3, 4] = 17
    evaluation = {"confusion": confusion.tolist(), "class_names": names, "per_class_accuracy": [0.5] * 120}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = Page(write_report(tmp_path).read_text())
    start = page.text.index("taken for")
    assert page.text[start + 1 : start + 7] == ["31", "class 7", "class 9", "17", "class 3", "class 4"]


def test_thousands_of_rows_stay_fast_and_small(tmp_path):
    rows = [{"step": s, "lr": 0.1, "train/loss": 1 + math.sin(s), "train/grad_norm": 1.0} for s in range(1, 20_001)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    start = time.monotonic()
    draw_curves(tmp_path)
    path = write_report(tmp_path)
    assert time.monotonic() - start < 10  # 2 s on an idle machine
    assert path.stat().st_size < 400_000


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, launcher.run.report; sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(report.__file__).parents[2]).returncode == 0
