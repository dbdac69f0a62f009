"""Columns of a table of predictions."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from options import option

from launcher.config.components import build
from launcher.losses.per_sample import PerSample
from launcher.models.build import build_model
from launcher.run import gallery
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import Supervised


def test_samples_of_different_lengths_are_padded():
    """The probabilities are those of each sample alone."""
    data = build("data", option("data", "brackets", samples=60))
    torch.manual_seed(0)
    model = build_model(option("model", "encoder"), data.facts())
    task = Supervised(PerSample(torch.nn.CrossEntropyLoss()), Outputs.of(data, {}))
    here = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
    table = gallery.columns(model, data.test, data.input_shape, task, 4, 3, here)
    model.eval()
    with torch.no_grad():
        words = [data.test.dataset[i][0]["input_ids"][None] for i in table["sample"]]
        alone = [model({"input_ids": word, "attention_mask": torch.ones_like(word)}) for word in words]
    torch.testing.assert_close(torch.from_numpy(table["probability"]), torch.cat(alone).softmax(1).amax(1))
