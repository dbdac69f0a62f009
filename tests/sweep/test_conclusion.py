import csv
import os
import re
from html.parser import HTMLParser

import pytest

from launcher.core.errors import ConfigError
from launcher.sweep import conclusion
from launcher.sweep.comparison import read_sweep
from launcher.sweep.conclusion import compare, conclude, print_table, write_csv, write_page


def test_all_files_are_written(made, capsys):
    path, _ = made
    compare([path], None, None)
    assert {"grid.csv", "grid.html", "grid.png"} <= {file.name for file in path.iterdir()}
    assert (path / "grid.png").stat().st_size > 10_000 and "grid.html" in capsys.readouterr().out


def test_a_metric_that_no_trial_has_costs_a_sweep_only_that(made, capsys):
    path, _ = made
    conclude(path, "eval/acuracy", None)
    said = capsys.readouterr().out
    assert "metric=eval/acuracy: no trial has it. There are: eval/a" in said and "grid.html" in said
    with pytest.raises(ConfigError, match="eval/accuracy"):
        compare([path], "eval/acuracy", None)


def test_a_sweep_that_cannot_be_written_to_is_printed(made, capsys):
    path, _ = made
    (path / "grid.csv").mkdir()  # as for root every directory can be written to
    compare([path], None, None)
    out = capsys.readouterr().out
    assert f"grid.csv, grid.png and grid.html cannot be written into {os.path.realpath(path)}" in out
    assert "best       eval/loss 0.5" in out


def test_each_trial_is_a_row(made):
    path, _ = made
    write_csv(read_sweep(path, None, None))
    rows = list(csv.DictReader((path / "grid.csv").open()))
    assert len(rows) == 7 and [row["state"] for row in rows] == ["finished"] * 6 + ["failed"]
    assert float(rows[0]["eval/loss"]) == 0.5 and rows[0]["optimizer.lr"] == "0.1" and rows[0]["seed"] == "0"
    assert rows[0]["best/eval/accuracy"] == "0.5" and rows[-1]["reason"] == "<script>no</script>"


def test_the_best_and_the_spread_are_printed(made, capsys, monkeypatch):
    path, _ = made
    monkeypatch.setattr(conclusion, "ROWS", 2)
    print_table(read_sweep(path, None, None))
    out = capsys.readouterr().out
    assert "python launcher/train.py optimizer.lr=0.1 seed=0" in out and "0.6 [0.3516, 0.8484] of 3 seeds" in out
    assert "best       eval/loss 0.5: optimizer.lr=0.1, seed=0" in out and "and 5 more in grid.csv" in out


class Elements(HTMLParser):
    """Texts of a page by the element that they stand in, and whether each element is closed by its own end."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "use", "path", "circle") or "svg" in self.open:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))


@pytest.fixture
def page(made):
    path, _ = made
    (path / "p0/report.html").touch()
    return write_page(read_sweep(path, None, None)).read_text()


def test_it_needs_nothing_else_and_trusts_no_text(page):
    assert "<script" not in page and "&lt;script&gt;no" in page and page.count("<svg") == 4
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_it_says_how_far_the_sweep_is_and_why_a_trial_failed(page):
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    texts = elements.texts
    assert ("span", "6 of 7 finished, 1 failed") in texts and ("pre", "</pre><script>") in texts
    assert ("summary", "optimizer.lr=<script>alert(1)</script>, seed=0: <script>no</script>") in texts
    headings = [text for tag, text in texts if tag == "h2"]
    assert headings == [
        "Best run", "Curves and effects", "Which settings differ", "Settings, seeds together",
        "What explains the spread", "Effect of each setting", "Trials", "Failures",
    ]  # fmt: skip


def test_only_reports_that_are_there_are_linked(page):
    assert re.findall(r'<a href="([^"]*)"', page) == ["p0/report.html", "p0/report.html", "bad/output.log"]


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "grid.json").write_text('{"points": {"a b&c": ["seed=0"]}}')
    page = write_page(read_sweep(tmp_path, None, None)).read_text()
    assert "0 of 1 finished" in page and "No trial has finished yet." in page and "Failures" not in page
