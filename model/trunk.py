"""The trunk: pre-norm blocks of attention and experts over the tokens of one row, ending in the CLS token."""

import torch
from torch import nn

from model.attention import Attention
from model.config import ModelConfig
from model.moe import MixtureOfExperts

# B rows, S tokens that go on, T tokens, D width

NORM_EPSILON = 1e-6


class Block(nn.Module):
    """Tokens exchange what they know, then each visits its experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=NORM_EPSILON)
        self.attention = Attention(config)
        self.moe_norm = nn.RMSNorm(config.width, eps=NORM_EPSILON)
        self.moe = MixtureOfExperts(config)

    def forward(self, tokens_BTD: torch.Tensor, going_on: int) -> torch.Tensor:
        """The first `going_on` tokens after the block [B, S, D]; the others are only listened to."""
        learnt_BSD = self.attention(self.attention_norm(tokens_BTD), going_on)
        tokens_BSD = tokens_BTD[:, :going_on] + learnt_BSD
        return tokens_BSD + self.moe(self.moe_norm(tokens_BSD))


class Trunk(nn.Module):
    """Blocks in a row. The last one computes the CLS token only: nobody reads the others."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """The CLS token, which is the first one, after all blocks [B, D]."""
        last = len(self.blocks) - 1
        for place, block in enumerate(self.blocks):
            tokens_BTD = block(tokens_BTD, 1 if place == last else tokens_BTD.shape[1])
        return tokens_BTD[:, 0]
