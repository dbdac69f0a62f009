"""Checks of the arguments of data sources: what is right comes back, what is not is named."""

import pytest

from launcher.core.errors import ConfigError
from launcher.data.arguments import check_flag, check_fraction, check_names, check_seed, check_whole


def test_what_is_right_comes_back():
    assert (check_fraction("a", 0.5), check_seed("a", 0), check_flag("a", False)) == (0.5, 0, False)
    assert (check_whole("a", 3, "number"), check_names("a", ["x", 1], ".")) == (3, ["x", "1"])


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (check_fraction, 1.0, "1.0 is no share"), (check_fraction, True, "True is no share"),
        (check_seed, -1, "-1 is no seed"), (check_seed, 2**32, "is no seed"), (check_seed, 0.0, "0.0 is no seed"),
        (check_flag, 1, "1 is neither true nor false"),
        (lambda name, value: check_whole(name, value, "side"), 0, "0 is no side"),
        (lambda name, value: check_whole(name, value, "side"), True, "True is no side"),
        (lambda name, value: check_names(name, value, ", such as [x]"), "x", "'x' is not a list, such as"),
    ],
)  # fmt: skip
def test_what_is_not_is_named(check, value, words):
    with pytest.raises(
        ConfigError, match=rf"^data\.it: .*{words}" if not words[0].isdigit() else rf"^data\.it: {words}"
    ):
        check("data.it", value)
