import re
from html.parser import HTMLParser

import pytest

from launcher.sweep.comparison import read_sweep
from launcher.sweep.pages import write_page


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
    assert "<script" not in page and "&lt;script&gt;no" in page and page.count("<svg") == 3
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_it_says_how_far_the_sweep_is_and_why_a_trial_failed(page):
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    texts = elements.texts
    assert ("span", "6 of 7 finished, 1 failed") in texts and ("pre", "</pre><script>") in texts
    assert ("summary", "optimizer.lr=<script>alert(1)</script>, seed=0: <script>no</script>") in texts
    headings = [text for tag, text in texts if tag == "h2"]
    assert headings == ["Best run", "Curves and effects", "Seeds", "Effect of each setting", "Trials", "Failures"]


def test_only_reports_that_are_there_are_linked(page):
    assert re.findall(r'<a href="([^"]*)"', page) == ["p0/report.html", "p0/report.html", "bad/output.log"]


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "grid.json").write_text('{"points": {"a b&c": ["seed=0"]}}')
    page = write_page(read_sweep(tmp_path, None, None)).read_text()
    assert "0 of 1 finished" in page and "No trial has finished yet." in page and "Failures" not in page
