import math

from launcher.sweep.pareto import points_of


def test_the_front_is_what_nothing_beats():
    values = {"a": (1.0, 0.5), "b": (2.0, 0.9), "c": (2.0, 0.8), "d": (0.5, 0.1), "e": (3.0, 0.9), "f": (1.0, 0.5)}
    found = points_of([({"lr": name}, value) for name, value in values.items()], ["min", "max"])
    front = [point.settings["lr"] for point in found if point.on_front]
    assert front == ["d", "a", "f", "b"]  # equals do not beat each other
    assert [point.settings["lr"] for point in found if not point.on_front] == ["c", "e"]


def test_points_are_means_over_seeds_and_what_has_diverged_is_none():
    results = [
        ({"lr": "a"}, (1.0, 2.0)),
        ({"lr": "a"}, (3.0, 4.0)),
        ({"lr": "b"}, (math.nan, 0.0)),
        ({"lr": "c"}, (1.0, None)),
    ]
    (point,) = points_of(results, ["min", "min"])
    assert list(point.values) == [2.0, 3.0] and point.on_front
