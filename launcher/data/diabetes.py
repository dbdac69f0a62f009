"""Progress of diabetes within a year: 442 patients, ten measurements each (Efron et al. 2004)."""

from launcher.data.shipped import read_shipped
from launcher.data.source import Data
from launcher.data.table import from_table


def load(test: float, validation: float, split_seed: int) -> Data:
    """Read the table, split it, and standardise inputs and target by the training part.

    Errors are thus in standard deviations of the target (about 77 points); `Data.target_std` has the figure.

    Args:
        test: Share of all patients for the test part, in (0, 1).
        validation: Share of the rest for the validation part, in (0, 1).
        split_seed: Seed of the split.

    Raises:
        ConfigError: A setting is outside its range.
    """
    features = read_shipped("diabetes_data_raw.csv.gz", delimiter=None)
    targets = read_shipped("diabetes_target.csv.gz")
    return from_table("diabetes", features, targets, None, test, validation, split_seed)
