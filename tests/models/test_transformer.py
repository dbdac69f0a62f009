"""The transformer against torch's own layers."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from texts import CONF, CPU
from torch import nn
from torch.nn import functional as F

from launcher.config.components import build
from launcher.core.errors import ConfigError
from launcher.models.transformer import Transformer, rotate, rotations

pytestmark = pytest.mark.versions


def make(**changes) -> Transformer:
    torch.manual_seed(0)
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "transformer.yaml"))
    small = {"width": 32, "layers": 2, "heads": 4}
    return build("model", settings | small | changes, num_classes=13, num_outputs=13, out_features=13, block=10)


def shaken(model: nn.Module) -> nn.Module:
    """Weights far from where they start, so that nothing is small by chance."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def torchs_own(block) -> nn.Module:
    """Torch's layer of the width 32 and 4 heads, with the weights of a block."""
    layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    first, _, second = block.feed_forward
    ours = {
        "self_attn.in_proj_": block.attention.query_key_value, "self_attn.out_proj.": block.attention.output,
        "linear1.": first, "linear2.": second, "norm1.": block.norm1, "norm2.": block.norm2,
    }  # fmt: skip
    layer.load_state_dict({f"{k}{w}": getattr(m, w) for k, m in ours.items() for w in ("weight", "bias")})
    return layer


VARIANTS = [
    {"positions": positions, "activation": activation, "tie_weights": tied}
    for positions, activation, tied in [
        ("learned", "gelu", True), ("learned", "swiglu", False), ("rotary", "gelu", False), ("rotary", "swiglu", True),
    ]
]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_torchs_own_encoder_layers_with_a_causal_mask(tied):
    model = shaken(make(tie_weights=tied))
    tokens = torch.randint(13, (5, 10))
    hidden = model.embedding.weight[tokens] + model.positions.weight
    mask = nn.Transformer.generate_square_subsequent_mask(10)
    for block in model.blocks:
        hidden = torchs_own(block)(hidden, src_mask=mask, is_causal=True)
    output = model.embedding.weight if tied else model.output.weight
    expected = F.layer_norm(hidden, (32,), model.norm.weight, model.norm.bias) @ output.T
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_output_knows_a_later_token_nor_another_sample(variant):
    model = shaken(make(**variant))
    tokens = torch.randint(13, (3, 10))
    with torch.no_grad():
        before = model(tokens)
        assert before.shape == (3, 10, 13)
        for at in range(10):
            changed = tokens.clone()
            changed[1, at] = (tokens[1, at] + 1) % 13
            differs = (model(changed) - before).abs().amax(2) > 1e-5
            assert not differs[[0, 2]].any() and not differs[1, :at].any() and differs[1, at:].all()
        torch.testing.assert_close(model(tokens[:, :6]), before[:, :6], rtol=1e-4, atol=1e-5)


def test_rotary_is_a_complex_product_and_sees_distances_alone():
    vectors = torch.randn(2, 3, 10, 8)
    cosine, sine = rotations(10, 8, CPU)
    turns = torch.polar(torch.ones(10, 4), torch.arange(10.0)[:, None] * 10000 ** (-torch.arange(4) / 4))
    expected = torch.complex(*vectors.chunk(2, dim=-1)) * turns
    torch.testing.assert_close(rotate(vectors, (cosine, sine)), torch.cat([expected.real, expected.imag], -1))
    query, key = (rotate(torch.randn(8).expand(10, 8), (cosine, sine)) for _ in range(2))
    scores = query @ key.T
    for distance in range(-9, 10):
        of_distance = scores.diagonal(distance)
        torch.testing.assert_close(of_distance, of_distance[:1].expand_as(of_distance), rtol=1e-4, atol=1e-5)


def test_swiglu_is_its_formula():
    layer = make(activation="swiglu").blocks[0].feed_forward
    inputs = torch.randn(4, 32)
    gate, up = layer.gate_up.weight.split(layer.down.in_features)
    expected = (F.silu(inputs @ gate.T) * (inputs @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(inputs), expected)
    assert layer.down.in_features == 88  # 2/3 * 4 * 32 = 85.3, up to a multiple of 8


def test_its_parameters_are_those_of_its_description():
    count = {name: sum(p.numel() for p in make(**changes).parameters()) for name, changes in {
        "tied": {}, "own output": {"tie_weights": False}, "rotary": {"positions": "rotary"}, "one more": {"layers": 3},
    }.items()}  # fmt: skip
    block = 12 * 32**2 + (3 + 1 + 4 + 1) * 32 + 2 * 2 * 32
    assert count["tied"] == 13 * 32 + 10 * 32 + 2 * block + 2 * 32
    assert count["own output"] == count["tied"] + 13 * 32 and count["rotary"] == count["tied"] - 10 * 32
    assert count["one more"] == count["tied"] + block
    assert not list(make(positions="rotary").buffers())


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_at_a_guess_and_learns_by_heart(variant):
    model = make(**variant)
    tokens = torch.randint(13, (8, 11))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        losses.append(F.cross_entropy(model(inputs).flatten(0, 1), targets))
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[0].item() == pytest.approx(math.log(13), abs=0.1) and losses[-1].item() < 0.7


def test_dropout_works_in_training_alone():
    model, tokens = make(dropout=0.5), torch.randint(13, (2, 10))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, r"model\.width: 30 is no multiple of model\.heads=4"),
        ({"width": 0}, r"model\.width: 0 "),
        ({"layers": 1.5}, r"model\.layers: 1\.5 "),
        ({"heads": -1}, r"model\.heads: -1 "),
        ({"mlp_ratio": 0}, r"model\.mlp_ratio: 0 "),
        ({"positions": "sine"}, r"model\.positions: 'sine' .*learned or rotary"),
        ({"positions": "rotary", "width": 12}, r"model\.positions: rotary .* 3 is odd"),
        ({"activation": "relu"}, r"model\.activation: 'relu' .*gelu or swiglu"),
        ({"tie_weights": "yes"}, r"model\.tie_weights: 'yes' "),
    ],
)
def test_refuses_what_makes_no_model(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_document_in_a_block_is_as_one_alone(variant):
    """Attention by blocks along the diagonal, with positions that begin anew."""
    model = shaken(make(**variant, within_documents=True, end_of_text=3))
    texts = [torch.tensor(text) for text in ([4, 5, 3], [3], [6, 4, 4, 3], [7, 8])]
    together = model(torch.cat(texts)[None])[0]
    for scores, text in zip(together.split([len(text) for text in texts]), texts, strict=True):
        torch.testing.assert_close(scores, model(text[None])[0], rtol=1e-4, atol=1e-5)
    plain = make(**variant)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain.eval()(torch.cat(texts)[None])[0], together, atol=1e-3)


def test_documents_need_a_token_that_ends_them():
    with pytest.raises(ConfigError, match=r"Set data\.end_of_text, or model\.within_documents=false"):
        make(within_documents=True)
