"""Iris flowers: 150 of three species, four lengths each (Fisher 1936)."""

from launcher.data.shipped import read_shipped
from launcher.data.source import Data
from launcher.data.table import from_table

CLASSES = ["setosa", "versicolor", "virginica"]


def load(test: float, validation: float, split_seed: int) -> Data:
    """Read the table, split it, and standardise it by the training part.

    Args:
        test: Share of all rows for the test part, in (0, 1).
        validation: Share of the rest for the validation part, in (0, 1).
        split_seed: Seed of the split.

    Raises:
        ConfigError: A setting is outside its range.
    """
    table = read_shipped("iris.csv", skip=1)
    return from_table("iris", table[:, :-1], table[:, -1], CLASSES, test, validation, split_seed)
