"""Parameters that a step does not use: with one process it is nothing, with several DDP waits for their gradients."""

import pytest
from kill_loop import OWN, place
from processes import summary, train

NETS = (
    OWN
    + """
import os
from torch import nn

class Net(nn.Module):
    '''Has a layer that no step uses.'''
    def __init__(self, in_features, num_outputs):
        super().__init__()
        self.layer, self.side = nn.Linear(in_features, num_outputs), nn.Linear(in_features, num_outputs)
        self.calls = 0
    def forward(self, x):
        return self.layer(x)

class Sometimes(Net):
    '''One that the tenth batch of training does not use.'''
    def forward(self, x):
        self.calls += self.training
        return self.layer(x) if self.calls == 10 else self.layer(x) + self.side(x)
"""
)
RUN = ["data._target_=own.load", "threads=1", "batch.global_size=12", "epochs=4", "hydra.run.dir=run"]
ADVICE = "say strategy.find_unused_parameters=true, or freeze those that no step uses."


@pytest.mark.parametrize("net", ["Net", "Sometimes"])
def test_they_are_named_with_the_setting_that_helps(net, tmp_path):
    words = [*RUN, f"model._target_=own.{net}"]
    failed = train(words, place(tmp_path, NETS), 2).wait()
    assert failed.status == [1, 1]
    said = failed.err(0) + failed.err(1)
    assert "failed: a step does not use all parameters: side.weight, side.bias had no gradient." in said
    assert ADVICE in said and "Traceback" not in said, said
    train([*words, "strategy.find_unused_parameters=true", "hydra.run.dir=again"], tmp_path, 2).ok()
    assert summary(tmp_path / "again")["step"] == 20


def test_frozen_and_alone_they_are_no_trouble(tmp_path):
    words = [*RUN, "model._target_=own.Net"]
    train([*words, "freeze=[side.*]"], place(tmp_path, NETS), 2).ok()
    train([*words, "hydra.run.dir=alone"], tmp_path).ok()


def test_static_graph_is_for_steps_that_use_the_same(tmp_path):
    words = [*RUN, "strategy.static_graph=true"]
    train([*words, "model._target_=own.Net"], place(tmp_path, NETS), 2).ok()
    failed = train([*words, "model._target_=own.Sometimes", "hydra.run.dir=some"], tmp_path, 2).wait()
    said = failed.err(0) + failed.err(1)
    assert failed.status == [1, 1] and "Traceback" not in said
    assert "side.bias had no gradient. strategy.static_graph=true is for steps that all use the same: say false" in said
