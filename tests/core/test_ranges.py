import pytest

from launcher.core.ranges import parse_range


@pytest.mark.parametrize(
    ("value", "range_"), [(3, (3, 3)), ("3", (3, 3)), ("1-4", (1, 4)), ("2-2", (2, 2)), ("8-16", (8, 16))]
)
def test_a_number_or_the_least_and_the_most(value, range_):
    assert parse_range(value) == range_


@pytest.mark.parametrize("value", [0, -1, "0-2", "4-1", "1-", "-4", "1 - 4", "1-4-8", "", "auto", None, True, 1.5])
def test_anything_else_is_none(value):
    with pytest.raises(ValueError, match="a range such as 1-4"):
        parse_range(value)
