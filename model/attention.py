"""Multi-head attention over the tokens of one row, with grouped-query key and value heads.

No mask and no positions: the tokens of a table are a set, and each was made by weights of its own.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from model.config import ModelConfig

# B rows, S tokens that ask, T tokens, D width, H heads, G key and value heads, A width of a head


class Attention(nn.Module):
    """The first tokens ask, all tokens answer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.is_grouped = config.kv_heads != config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.kv_heads * self.head_width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, tokens_BTD: torch.Tensor, asking: int) -> torch.Tensor:
        """What the first `asking` tokens learn from all tokens [B, S, D]."""
        query_BHSA = self._heads(self.query(tokens_BTD[:, :asking]))
        key_BTX, value_BTX = self.key_value(tokens_BTD).chunk(2, dim=-1)
        mixed_BHSA = scaled_dot_product_attention(
            query_BHSA, self._heads(key_BTX), self._heads(value_BTX), enable_gqa=self.is_grouped
        )
        return self.output(mixed_BHSA.transpose(1, 2).flatten(2))

    def _heads(self, x_BTX: torch.Tensor) -> torch.Tensor:
        return x_BTX.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
