from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

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
        ("devices_per_run", "4-1", "or a range such as 1-4"),
        ("devices_per_run", "1-", "or a range such as 1-4"),
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


def settings(global_size, exact=False):
    batch = SimpleNamespace(global_size=global_size)
    return SimpleNamespace(batch=batch, exact_across_devices=exact, canonical_shards=4)


def test_a_range_is_the_numbers_that_share_a_global_batch_evenly():
    options = LocalOptions(**PLAIN | {"devices_per_run": "1-6"})
    assert (options.world, options.most, options.per_run) == (1, 6, "1-6")
    assert options.sizes(settings(96)) == (1, 2, 3, 4, 6)
    assert options.sizes(settings(96, exact=True)) == (1, 2, 4)
    assert options.sizes(settings(7)) == (1,)
    assert LocalOptions(**PLAIN | {"devices_per_run": "3-6"}).sizes(settings(64)) == (3, 4)  # the least is as asked for
    fixed = LocalOptions(**PLAIN | {"devices_per_run": "2-2"})
    assert (fixed.world, fixed.most, fixed.per_run, fixed.sizes(settings(64))) == (2, 2, 2, (2,))


def test_the_smaller_limit_counts():
    assert LocalOptions(**PLAIN).limit is None
    assert LocalOptions(**PLAIN | {"parallel": 3}).limit == 3
    assert LocalOptions(**PLAIN | {"parallel": 3, "max_parallel": 2}).limit == 2


def test_a_range_of_devices_and_a_part_of_one_exclude_each_other():
    settings = OmegaConf.create(
        {"device": "cpu", "mixed_precision": "no", "batch": {"max_per_device": 4}, "threads": 1}
    )
    for asked, shared in (("1-2", 1), (1, 2)):
        assert (
            LocalOptions(**PLAIN | {"devices_per_run": asked, "trials_per_device": shared}).place(settings)[0] == "cpu"
        )
    with pytest.raises(ConfigError, match="Choose one of the two"):
        LocalOptions(**PLAIN | {"devices_per_run": "1-2", "trials_per_device": 2}).place(settings)
    settings.batch.max_per_device = "auto"
    with pytest.raises(ConfigError, match=r"a part of a device\. Give a number"):
        LocalOptions(**PLAIN | {"trials_per_device": 2}).place(settings)
