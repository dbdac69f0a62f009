"""The encoder against torch's own layers, and sequences alone against the same ones in a padded batch."""

import pytest
import torch
from options import option
from test_transformer import shaken, torchs_own
from torch.nn import functional as F

from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.models import transformer


def make(**changes):
    torch.manual_seed(0)
    return build("model", option("model", "encoder", width=32, **changes), vocab_size=9, num_outputs=3)


def test_it_is_torchs_own_encoder_layers(monkeypatch):
    """But for the rotation of queries and keys, which is left out on both sides."""
    monkeypatch.setattr(transformer, "rotate", lambda vectors, rotation: vectors)
    model = shaken(make())
    tokens, mask = torch.randint(9, (4, 7)), torch.ones(4, 7, dtype=torch.int64)
    mask[1, 3:], mask[2, 1:] = 0, 0
    hidden = model.embedding(tokens)
    for block in model.blocks:
        hidden = torchs_own(block)(hidden, src_key_padding_mask=mask == 0)
    hidden = F.layer_norm(hidden, (32,), model.norm.weight, model.norm.bias)
    mean = torch.stack([row[seen.bool()].mean(0) for row, seen in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(model(tokens, mask), model.output(mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_what_fills_a_batch_up_changes_nothing(activation):
    model = shaken(make(activation=activation))
    tokens, mask = torch.randint(9, (4, 7)), torch.ones(4, 7, dtype=torch.int64)
    for row, length in enumerate((7, 3, 1, 5)):
        mask[row, length:] = 0
    together = model(tokens, mask)
    for row, length in enumerate((7, 3, 1, 5)):
        alone = model(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(tokens.flip(1), mask.flip(1))[:1], together[:1], atol=1e-3), "the order counts"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "model.width: 32 is no multiple of model.heads=5"),
        ({"layers": 0}, "model.layers: 0 is no width"),
        ({"heads": 32}, "rotary turns pairs of numbers"),
        ({"activation": "relu"}, "'relu' is unknown; pick gelu or swiglu"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)
