"""Decoder-only transformer for streams of tokens."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launcher.core.errors import ConfigError
from launcher.models.widths import check_width

Rotation = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Self-attention of several heads, by torch's fused kernels; causal where no mask says what is seen."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor, rotation: Rotation | None, seen: Tensor | None = None) -> Tensor:
        """Map [n, t, width] to [n, t, width]; position i sees what `seen` [n, 1, 1 or t, t] says, or 0 .. i."""
        projected = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind()  # [n, heads, t, width / heads] each
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, seen, dropout, is_causal=seen is None)
        return self.output(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Down(SiLU(gate) * up), after Shazeer (2020), "GLU Variants Improve Transformer"."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then a layer for each token alone, each normalised before and added to what came in."""

    def __init__(self, width: int, attention: Attention, feed_forward: nn.Module, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.feed_forward = nn.LayerNorm(width), feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rotation: Rotation | None, seen: Tensor | None = None) -> Tensor:
        """Map [n, t, width] to [n, t, width]; `seen` as for the attention."""
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden), rotation, seen))
        return hidden + self.dropout(self.feed_forward(self.norm2(hidden)))


class Transformer(nn.Module):
    """Decoder-only transformer, pre-norm, as GPT-2 (Radford et al. 2019) or, with rotary and swiglu, as later ones.

    Weights start from a normal distribution of deviation 0.02, those that end in the residual stream divided by
    sqrt(2 * layers), so that its size does not grow with the depth.

    Args:
        num_classes: Tokens of the vocabulary.
        block: Most tokens at once.
        width: Numbers per token, a multiple of the heads.
        layers: Number of blocks.
        heads: Heads of each attention.
        mlp_ratio: Width inside of the layers for each token alone over `width`; swiglu, which has three matrices for
            two, takes two thirds of it, rounded up to a multiple of 8.
        positions: `learned`, one vector a position; or `rotary` (Su et al. 2021, "RoFormer").
        activation: `gelu` or `swiglu`.
        dropout: Share dropped in training of the attention weights, of what the blocks add, and of their input,
            in [0, 1).
        tie_weights: Use the embedding as the output layer too (Press and Wolf 2017).
        within_documents: A token sees those of its own document alone, whose positions begin anew, as if each document
            were a sample: attention by blocks along the diagonal. A mask takes [n, t, t] truths, and the kernels that
            take one are slower.
        end_of_text: The token that ends a document, and is its last.
    """

    def __init__(
        self,
        num_classes: int,
        block: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        positions: str,
        activation: str,
        dropout: float,
        tie_weights: bool,
        within_documents: bool = False,
        end_of_text: int | None = None,
    ) -> None:
        super().__init__()
        check_width("model.layers", layers)
        if positions not in ("learned", "rotary"):
            raise ConfigError(f"model.positions: {positions!r} is unknown; pick learned or rotary.")
        check_heads(width, heads, positions)
        if not isinstance(tie_weights, bool):
            raise ConfigError(f"model.tie_weights: {tie_weights!r} is neither true nor false.")
        if within_documents and end_of_text is None:
            raise ConfigError(
                "model.within_documents: the data does not say which token ends a document. Set data.end_of_text, or "
                "model.within_documents=false."
            )
        self.end_of_text = end_of_text if within_documents else None
        self.head_width = width // heads
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, Attention(width, heads, dropout), feed_forward(width, mlp_ratio, activation), dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        # Where it is the output layer as well, the embedding is the last matrix: there Muon looks for that.
        self.positions = nn.Embedding(block, width) if positions == "learned" else None
        self.embedding = nn.Embedding(num_classes, width)
        self.output = None if tie_weights else nn.Linear(width, num_classes, bias=False)
        start(self, layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [n, t] int64, t <= block, to scores of the next one [n, t, num_classes]."""
        hidden, rotation, seen, places = self.embedding(tokens), None, None, None
        if self.end_of_text is not None:
            seen, places = documents(tokens, self.end_of_text)
        if self.positions is not None:
            weight = self.positions.weight
            hidden = hidden + (weight[: tokens.shape[1]] if places is None else weight[places])
        else:  # turned by the same angle, two tokens see each other as before: they need not begin anew
            rotation = rotations(tokens.shape[1], self.head_width, tokens.device)
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden, rotation, seen)
        output = self.embedding if self.output is None else self.output
        return F.linear(self.norm(hidden), output.weight)


def documents(tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """What tokens [n, t] of several documents see, [n, 1, t, t], and the place of each in its document, [n, t]."""
    ends = tokens == end
    number = ends.cumsum(1) - ends.long()  # of the document; its last token is the one that ends it
    at = torch.arange(tokens.shape[1], device=tokens.device)
    seen = (number[:, :, None] == number[:, None, :]) & (at[:, None] >= at)
    return seen[:, None], seen.sum(-1) - 1


def check_heads(width: Any, heads: Any, positions: str) -> None:
    """Check that heads of an attention fit a width, and rotary positions the heads, else a ConfigError."""
    check_width("model.width", width)
    check_width("model.heads", heads)
    if width % heads:
        raise ConfigError(f"model.width: {width} is no multiple of model.heads={heads}.")
    if positions == "rotary" and width // heads % 2:
        raise ConfigError(
            f"model.positions: rotary turns pairs of numbers, and width / heads = {width // heads} is odd."
        )


def feed_forward(width: int, ratio: Any, activation: Any) -> nn.Module:
    """The layer for each token alone, from [..., width] to [..., width]."""
    hidden = _hidden(width, ratio, activation)
    if activation == "swiglu":
        return SwiGLU(width, hidden)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def start(model: nn.Module, layers: int) -> None:
    """Initial weights of a transformer of so many blocks."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:
            ends = name.endswith(("attention.output.weight", "feed_forward.2.weight", "feed_forward.down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers if ends else 1))


def rotations(length: int, width: int, device: torch.device) -> Rotation:
    """Cosines and sines [length, width / 2] of position * 10000 ** (-2 i / width).

    Computed anew for each batch, which costs nothing beside it: a buffer would be sent around by DDP.
    """
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.outer(torch.arange(length, device=device), frequencies)
    return angles.cos(), angles.sin()


def rotate(vectors: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + width / 2) of [..., t, width] by the angles of their positions."""
    cosine, sine = rotation
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(vectors.dtype)


def _hidden(width: int, ratio: Any, activation: Any) -> int:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio * width < 2**31:
        raise ConfigError(f"model.mlp_ratio: {ratio!r} is no ratio of widths; it must be a number above 0, such as 4.")
    if activation == "swiglu":
        return 8 * math.ceil(ratio * width / 12)
    if activation == "gelu":
        return max(1, round(ratio * width))
    raise ConfigError(f"model.activation: {activation!r} is unknown; pick gelu or swiglu.")
