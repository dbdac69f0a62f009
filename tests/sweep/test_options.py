import pytest

from launcher.core.errors import ConfigError
from launcher.sweep.options import LocalOptions

PLAIN = {"devices": "auto", "devices_per_run": "auto", "trials_per_device": 1, "parallel": "auto", "max_parallel": None,
         "max_points": 9, "max_time_per_run": None, "metric": None, "metric_mode": None}  # fmt: skip


def test_the_defaults_fit():
    LocalOptions(**PLAIN).check()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("devices_per_run", 0, "at least 1, or auto"),
        ("parallel", "many", "or auto"),
        ("trials_per_device", 0, "at least 1, or auto"),
        ("max_parallel", "all", "or null"),
        ("max_points", "many", "whole number"),
        ("metric", 3, "a text"),
        ("metric_mode", "least", "min or max"),
        ("max_time_per_run", "soon", "90m"),
    ],
)
def test_a_wrong_setting_is_named(name, value, said):
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{name}={value}: .*{said}"):
        LocalOptions(**PLAIN | {name: value}).check()


def test_the_smaller_limit_counts():
    assert LocalOptions(**PLAIN).limit is None
    assert LocalOptions(**PLAIN | {"parallel": 3}).limit == 3
    assert LocalOptions(**PLAIN | {"parallel": 3, "max_parallel": 2}).limit == 2
