"""Files of an adapter, read by the package peft beside a base that never saw the launcher."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from launcher.core.errors import ConfigError
from launcher.models.adapters import adapt
from launcher.models.peft_files import of_model, read

peft = pytest.importorskip("peft")
LORA = {"name": "lora", "rank": 3, "alpha": 12, "dropout": 0.0, "target_modules": ["*"], "modules_to_save": ["head"]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 4, 1)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(self.words(x)).mean(1))


@pytest.mark.parametrize("targets", [["words", "body.*"], "all-linear"])
def test_peft_reads_what_was_learned(targets, tmp_path):
    torch.manual_seed(0)
    model = Net()
    base = copy.deepcopy(model)
    adapt(model, LORA | {"target_modules": targets}, {"num_outputs": 2})
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.normal_()
    inputs = torch.randint(9, (5, 7))
    wanted = model(inputs)
    assert not torch.allclose(wanted, base(inputs), atol=1e-2)
    tensors, settings = of_model(model)
    assert not any("base_layer" in name for name in tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings.save_pretrained(str(tmp_path))
    torch.testing.assert_close(peft.PeftModel.from_pretrained(base, str(tmp_path))(inputs), wanted)
    torch.testing.assert_close(read(model, tmp_path)(inputs), wanted)


def test_what_the_files_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match=r"format=adapter: this run has no adapter"):
        of_model(Net())
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    adapt(model, LORA | {"target_modules": "all-linear", "modules_to_save": []}, {"num_outputs": 2})
    with pytest.raises(ConfigError, match=r"no place for running statistics, .*1\.running_mean"):
        of_model(model)
