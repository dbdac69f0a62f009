"""BatchNorm where a device sees one sample alone: refused beforehand exactly where torch would fail on the way."""

import re
from itertools import chain

import pytest
import torch
from torch import nn

from launcher.batching.plan import plan_batch
from launcher.batching.stream import Stream
from launcher.core.errors import ConfigError
from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.training.engine import check_alone
from launcher.training.finetune import freeze

CUTS = [
    (size, batch, world, most)
    for size, batch in ((21, 20), (22, 4), (23, 5), (9, 2), (60, 14))
    for world in (1, 2, 3)
    for most in (None, 1, 2, 3)
    if batch >= world
]


def data_of(samples, shape=(3,)):
    part = TensorSplit(torch.rand(samples, *shape), torch.arange(samples) % 3)
    return Data("own", "classification", shape, 3, part, part, part)


def fails_in_torch(model, data, plan, steps):
    """Show every rank's micro-batches to the model itself."""
    streams = (Stream(data.train, plan, 0, rank, torch.device("cpu"), 0) for rank in range(plan.world_size))
    try:
        for batch in chain.from_iterable(stream.batches(0, steps) for stream in streams):
            for micro in batch.micros:
                model(micro.inputs)
    except ValueError as error:
        assert "more than 1 value per channel" in str(error)
        return True
    return False


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refused_where_torch_fails_and_what_is_advised_works(device):
    found = set()
    for samples, size, world, most in CUTS:
        data, plan = data_of(samples), plan_batch(samples, size, world, most)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        for steps in (1, plan.steps_per_epoch, 100):
            fails = fails_in_torch(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), data, plan, min(steps, 30))
            found.add(fails)
            try:
                check_alone(net.to(device), data, plan, most, steps)
                assert not fails, (samples, size, world, most, steps)
            except ConfigError as error:
                assert fails, (samples, size, world, most, steps)
                assert f"batch.global_size={plan.global_size}" in str(error) and "model.norm=group" in str(error)
                advised = dict(re.findall(r"batch\.(\w+)=(\w+)", str(error).partition("Use ")[2]))
                cap = advised.get("max_per_device", most)
                cap = None if cap in (None, "null") else int(cap)
                better = plan_batch(samples, int(advised.get("global_size", size)), world, cap)
                check_alone(net, data, better, cap, steps)
        if device == "cpu":
            assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert found == {True, False}


def test_one_sample_is_enough_where_it_has_several_values_per_channel_or_the_statistics_are_frozen():
    plan = plan_batch(9, 2, 2, None)
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    check_alone(image, data_of(9, (1, 8, 8)), plan, None, 5)
    with pytest.raises(ConfigError, match="each update, whose size is 2"):
        check_alone(image, data_of(9, (1, 3, 3)), plan, None, 5)  # one value is left of each image
    check_alone(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), data_of(9), plan, None, 5)
    frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    freeze(frozen, ["1.*"])
    check_alone(frozen, data_of(9), plan, None, 5)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, number):
        return {"left": torch.rand(3), "right": torch.rand(3)}, number % 3


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, inputs):
        return self.norm(inputs["left"] + inputs["right"])


def test_inputs_in_a_dict_and_a_model_that_works_in_memory_alone():
    part = DatasetSplit(Pairs())
    data = Data("pairs", "classification", (3,), 3, part, part, part)
    drawn = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match="last update of an epoch, whose size is 1,"):
        check_alone(Both(), data, plan_batch(9, 4, 1, None), None, 5)
    assert torch.equal(drawn, torch.random.get_rng_state())

    class Looking(Both):
        def forward(self, inputs):
            return super().forward(inputs) * inputs["left"].sum().item()

    check_alone(Looking().train(False), data, plan_batch(9, 4, 1, None), None, 5)
