"""The small data sets that scikit-learn carries: tables of iris flowers, wines and diabetes, and handwritten digits.

`import sklearn.datasets` takes 1.8 s; reading the files that it would read takes 0.02 s.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.core.errors import ConfigError
from launcher.data.augmentation import augmentation
from launcher.data.images import Standardise, images_in_memory, long_tail
from launcher.data.source import Data
from launcher.data.splitting import split_three
from launcher.data.table_statistics import from_table

# Of the tables of classes: the file, and the names of the classes, which its last column numbers.
CLASSES = {
    "iris": ("iris.csv", ["setosa", "versicolor", "virginica"]),  # 150 flowers, four lengths each (Fisher 1936)
    # 178 wines of three cultivars, thirteen chemical measurements each (Aeberhard and Forina 1992)
    "wine": ("wine_data.csv", ["class_0", "class_1", "class_2"]),
}
TABLES = (*CLASSES, "diabetes")
MEAN, STD = 4.8842, 6.0168  # of all pixels of the digits, which run from 0 to 16


def load(name: str, test: float, validation: float, split_seed: int) -> Data:
    """Read a table, `iris`, `wine` or `diabetes`, split it, and standardise it by the training split.

    The target of `diabetes`, the progress of 442 patients within a year by ten measurements each (Efron et al. 2004),
    is standardised too: the loss is of standard deviations (about 77 points); `Data.target_std` has the figure.
    The settings are those of conf/data/iris.yaml.
    """
    if name not in TABLES:
        raise ConfigError(f"data.name: {name!r} is none of the tables of scikit-learn: {', '.join(TABLES)}.")
    classes = None
    if name in CLASSES:
        file, classes = CLASSES[name]
        table = read(file, skip=1)
        features, targets = table[:, :-1], table[:, -1]
    else:
        features, targets = read("diabetes_data_raw.csv.gz", delimiter=None), read("diabetes_target.csv.gz")
    return from_table(name, features, targets, classes, test, validation, split_seed)


def load_digits(
    test: float, validation: float, split_seed: int, flip: bool, shift: int, imbalance: float | None
) -> Data:
    """Read 1,797 handwritten digits: inputs [n, 1, 8, 8] uint8 in 0 .. 16, targets 0 .. 9 (Alpaydin and Kaynak 1998).

    The settings are those of conf/data/digits.yaml.
    """
    augment = augmentation(flip, shift, 0, 8, [])
    table = torch.from_numpy(read("digits.csv.gz"))
    images, labels = table[:, :64].to(torch.uint8).view(-1, 1, 8, 8), table[:, 64].long()
    train, validated, tested = split_three(len(labels), test, validation, split_seed, labels)
    if imbalance is not None:
        train = train[long_tail(labels[train], imbalance, split_seed)]
    prepare, names = Standardise(MEAN, STD), [str(digit) for digit in range(10)]
    splits = ((images[index], labels[index]) for index in (train, validated, tested))
    return images_in_memory("digits", splits, prepare, augment, names)


def read(file: str, delimiter: str | None = ",", skip: int = 0) -> np.ndarray:
    """Numbers [rows, columns] float64 of a table in scikit-learn's `datasets/data`; no delimiter is white space."""
    package: Any = find_spec("sklearn")
    path = Path(package.submodule_search_locations[0], "datasets", "data", file)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return np.loadtxt(lines, delimiter=delimiter, skiprows=skip, ndmin=2)
