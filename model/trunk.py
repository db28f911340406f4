"""The trunk: pre-norm blocks of attention and experts over the tokens of one row, ending in the CLS token.

With checkpointing a block keeps only its inputs and is computed again on the way back: less memory, more time, the same
numbers. That is a choice of the site that trains, not a property of the model.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention
from model.config import ModelConfig
from model.moe import MixtureOfExperts, Routing

# B rows, S tokens that go on, T tokens, D width, E experts

NORM_EPSILON = 1e-6


class Block(nn.Module):
    """Tokens exchange what they know, then each visits its experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=NORM_EPSILON)
        self.attention = Attention(config)
        self.moe_norm = nn.RMSNorm(config.width, eps=NORM_EPSILON)
        self.moe = MixtureOfExperts(config)

    def forward(
        self, tokens_BTD: torch.Tensor, going_on: int, noise_BSE: torch.Tensor | None
    ) -> tuple[torch.Tensor, Routing]:
        """The first `going_on` tokens after the block [B, S, D], and their routing; the others are only listened to."""
        learnt_BSD = self.attention(self.attention_norm(tokens_BTD), going_on)
        tokens_BSD = tokens_BTD[:, :going_on] + learnt_BSD
        said_BSD, routing = self.moe(self.moe_norm(tokens_BSD), noise_BSE)
        return tokens_BSD + said_BSD, routing


class Trunk(nn.Module):
    """Blocks in a row. The last one computes the CLS token only: nobody reads the others."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_checkpointing = False
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, tokens_BTD: torch.Tensor) -> tuple[torch.Tensor, tuple[Routing, ...]]:
        """The CLS token, which is the first one, after all blocks [B, D], and the routing of each block."""
        last = len(self.blocks) - 1
        routings: list[Routing] = []
        for place, block in enumerate(cast("Iterable[Block]", self.blocks)):
            going_on = 1 if place == last else tokens_BTD.shape[1]
            tokens_BTD, routing = self._through(block, tokens_BTD, going_on)
            routings.append(routing)
        return tokens_BTD[:, 0], tuple(routings)

    def _through(
        self, block: Block, tokens_BTD: torch.Tensor, going_on: int
    ) -> tuple[torch.Tensor, Routing]:
        noise_BSE = block.moe.router.draw_noise(tokens_BTD.shape[0], going_on)
        inputs = (tokens_BTD, going_on, noise_BSE)
        if not (self.is_checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        # A block draws nothing at random: its noise is an input, so no generator has to be put back.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
