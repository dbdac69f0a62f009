"""Bidirectional transformer for sequences of tokens of different lengths."""

from typing import Any

from torch import Tensor, nn

from launcher.models.transformer import Attention, Block, check_heads, feed_forward, rotations, start
from launcher.models.widths import check_width


class Encoder(nn.Module):
    """A transformer in which every token sees all others of its sequence, and the mean over them is mapped to outputs.

    As BERT (Devlin et al. 2019), with normalisation before each layer, rotary positions (Su et al. 2021), which know
    no longest sequence, and the mean in place of a first token. What fills a batch up is seen by none.

    Args:
        vocab_size: Tokens of the vocabulary.
        num_outputs: Classes or numbers to predict.
        width: Numbers per token, an even multiple of the heads.
        layers: Number of blocks.
        heads: Heads of each attention.
        mlp_ratio: As for the Transformer.
        activation: `gelu` or `swiglu`.
        dropout: Share dropped in training, in [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: Any,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        check_width("model.layers", layers)
        check_heads(width, heads, "rotary")
        self.head_width = width // heads
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, Attention(width, heads, dropout), feed_forward(width, mlp_ratio, activation), dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_outputs)
        start(self, layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map tokens [n, t] int64 and a mask [n, t], 0 where a sequence has ended, to outputs [n, num_outputs]."""
        seen = attention_mask[:, None, None, :].bool()
        hidden = self.dropout(self.embedding(input_ids))
        rotation = rotations(input_ids.shape[1], self.head_width, input_ids.device)
        for block in self.blocks:
            hidden = block(hidden, rotation, seen)
        weights = attention_mask.to(hidden.dtype)[..., None]
        return self.output((self.norm(hidden) * weights).sum(1) / weights.sum(1).clamp(min=1))
