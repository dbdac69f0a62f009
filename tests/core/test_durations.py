"""Spans of time as settings have them."""

import pytest

from launcher.core.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), (90, 90), ("45s", 45), ("90m", 5400), ("1.5h", 5400), ("2d", 172800)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", 0, -1, True, "5 years", ""])
def test_no_durations(text):
    with pytest.raises(ValueError, match="90m"):
        parse_duration(text)
