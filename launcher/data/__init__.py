"""Data sources, a file each, and the contract that each fulfils: a training, a validation and a test split."""

from launcher.batching.splits import DatasetSplit, TensorSplit
from launcher.data.source import Data

__all__ = ["Data", "DatasetSplit", "TensorSplit"]
