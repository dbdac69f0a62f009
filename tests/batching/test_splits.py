"""The samples of a split, and the types in which a model gets them."""

import pytest
import torch
from torch.utils.data import IterableDataset

from launcher.batching.splits import DatasetSplit, TensorSplit, as_numbers, first_infinite, suit
from launcher.core.errors import ConfigError


@pytest.mark.parametrize("known", [{"lengths": torch.ones(4, dtype=torch.int64)}, {"shards": (3, 1)}])
def test_what_is_told_of_other_samples_is_refused(known):
    """An order that goes by it would leave samples out, or name some that there are not."""
    (name,) = known
    with pytest.raises(ConfigError, match=f"list has 5 samples, and the {name} of its split are those of 4"):
        DatasetSplit([torch.zeros(2)] * 5, **known)
    split = DatasetSplit([torch.zeros(2)] * 4, **known)
    assert len(split.at(torch.tensor([0, 3]))) == 2


@pytest.mark.parametrize(
    ("given", "found"), [(torch.uint8, "float64"), (torch.int64, "int64"), (torch.half, "float64")]
)
def test_numbers_come_in_the_type_of_the_model_but_for_indices(given, found):
    split = TensorSplit(torch.ones(4, 2, dtype=given), torch.zeros(4))
    suit(torch.nn.Linear(2, 1).double(), split)
    pytree = as_numbers({"a": split.inputs, "b": [split.inputs]}, split)
    assert str(pytree["a"].dtype) == str(pytree["b"][0].dtype) == f"torch.{found}"


@pytest.mark.parametrize("row", [None, 0, 7, 9])
def test_the_first_row_that_is_not_finite_is_found(row, monkeypatch):
    monkeypatch.setattr("launcher.batching.splits.LOOKED", 8)  # a few rows at a time
    numbers = torch.full((10, 3), 3e38)  # whose sum is infinite
    numbers[slice(10, 11) if row is None else slice(row, None), 1] = torch.nan
    assert first_infinite(numbers) == row and first_infinite([torch.arange(3), {"x": numbers}]) == row


class Endless(IterableDataset):
    def __iter__(self):
        return iter([1])


def test_what_is_no_split_is_refused():
    with pytest.raises(ConfigError, match="the targets of a TensorSplit are a list"):
        TensorSplit(torch.zeros(2, 2), [0, 1])
    with pytest.raises(ConfigError, match="Endless has no length"):
        DatasetSplit(Endless())
