"""Options of conf/data, read, and small tables."""

import csv as reader
from pathlib import Path

from options import option

from launcher.config.components import build
from launcher.data import Data

CONF = Path(__file__).parents[2] / "conf" / "data"


def load(name: str, **changes) -> Data:
    return build("data", option("data", name, **changes))


def parts(data: Data) -> list:
    return [data.train, data.validation, data.test]


def table(path: Path, header: list, rows: list, delimiter: str = ",") -> str:
    with path.open("w", newline="") as file:
        reader.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)
