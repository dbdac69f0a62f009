"""Spans of time: those of settings and those of SLURM."""

import pytest

from launcher.core.durations import parse_duration, parse_slurm_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), (90, 90), ("45s", 45), ("90m", 5400), ("1.5h", 5400), ("2d", 172800)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", 0, -1, True, "5 years", ""])
def test_no_durations(text):
    with pytest.raises(ValueError, match="90m"):
        parse_duration(text)


def test_times_as_slurm_prints_them():
    cases = {"30": 1800, "5:30": 330, "1:00:00": 3600, "2-12:00:00": 216000, "1-0": 86400, "0:07\n": 7}
    assert {text: parse_slurm_duration(text) for text in cases} == cases
    assert [parse_slurm_duration(text) for text in ("UNLIMITED", "INVALID", "NOT_SET", "")] == [None] * 4
    with pytest.raises(ValueError, match="no time"):
        parse_slurm_duration("soon")
