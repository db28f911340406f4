"""Mixture of experts: one shared expert for every token and `top_k` of the routed experts.

1. The router scores every expert for every token; in training Gumbel noise on the scores turns the choice of the best
   `top_k` into a draw without replacement. At inference there is no noise.
2. The softmax of the scores without noise, rescaled over the chosen experts, weighs their outputs.
3. Rows, one per token and chosen expert, are sorted by expert once per block and go through grouped products.

Every patient's tokens are treated alone: no capacity, no dropped token, no statistic over the batch, no state. That is
what makes a bound on one patient's gradient a bound on that patient's influence. The noise must be secret wherever
differential privacy is claimed: with noise that is known, removing one patient would shift the noise of the others.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from kernels.grouped_mm import grouped_matmul
from model.config import ModelConfig

# B rows, T tokens, D width, E experts, K experts per token, R = T * K expert rows per row, N = B * R, I inner width


class ExpertOrder(NamedTuple):
    """How to sort expert rows by expert."""

    permutation: torch.Tensor
    """Takes the rows into order [N]."""
    offsets: torch.Tensor
    """Where each expert's group ends, int32 [E]."""


def expert_order(expert_ids_BR: torch.Tensor, experts: int) -> ExpertOrder:
    """The stable order of expert rows by expert; experts without a row have empty groups."""
    ids_N = expert_ids_BR.flatten()
    counts_E = torch.bincount(ids_N, minlength=experts)
    return ExpertOrder(
        permutation=torch.argsort(ids_N, stable=True), offsets=counts_E.cumsum(0).to(torch.int32)
    )


class GroupedLinear(nn.Module):
    """A matrix per expert, without bias."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, inputs, outputs) / math.sqrt(inputs))

    def forward(
        self,
        rows_BRI: torch.Tensor,
        expert_ids_BR: torch.Tensor,
        *,
        permutation: torch.Tensor,
        offsets: torch.Tensor,
    ) -> torch.Tensor:
        """Each row times the matrix of its expert [B, R, O], in the order in which the rows came.

        `permutation` and `offsets` are `expert_order(expert_ids_BR, experts)`: they are the same for all layers of a
        block. The ids themselves are an argument for those who observe the layer, such as per-patient clipping.
        """
        inverse = torch.empty_like(permutation)
        inverse[permutation] = torch.arange(permutation.shape[0], device=permutation.device)
        sorted_NI = _Permuted.apply(rows_BRI.flatten(0, 1), permutation, inverse)
        products_NO = grouped_matmul(sorted_NI, self.weight, offsets)
        return _Permuted.apply(products_NO, inverse, permutation).unflatten(0, expert_ids_BR.shape)


class _Permuted(torch.autograd.Function):
    """Rows in the order of a permutation. The gradient takes the way back, cheaper than a scattered sum."""

    @staticmethod
    def forward(
        ctx: Any, rows_NX: torch.Tensor, there_N: torch.Tensor, back_N: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(back_N)
        return rows_NX.index_select(0, there_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NX: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back_N,) = ctx.saved_tensors
        return grad_NX.index_select(0, back_N), None, None


class Router(nn.Module):
    """Which experts a token visits, and with what weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.gumbel_scale = config.gumbel_scale
        self.noise_generator: torch.Generator | None = None
        self.scores = nn.Linear(config.width, config.experts, bias=False)

    def forward(self, tokens_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and ids of the chosen experts, both [B, T, K]; the weights of a token sum to 1, in float32."""
        scores_BTE = self.scores(tokens_BTD).float()
        ids_BTK = self._noisy(scores_BTE.detach()).topk(self.top_k, dim=-1).indices
        # The softmax over all experts, rescaled over the chosen ones, is the softmax over the chosen ones.
        return scores_BTE.gather(-1, ids_BTK).softmax(-1), ids_BTK

    def _noisy(self, scores_BTE: torch.Tensor) -> torch.Tensor:
        if not self.training or self.gumbel_scale == 0.0:
            return scores_BTE
        uniform_BTE = torch.rand(
            scores_BTE.shape, generator=self.noise_generator, device=scores_BTE.device
        )
        return scores_BTE - uniform_BTE.log().neg().log() * self.gumbel_scale


class MixtureOfExperts(nn.Module):
    """The shared SwiGLU expert plus the weighted routed ones. Gate and up projections are one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.width, config.expert_width
        self.experts = config.experts
        self.router = Router(config)
        self.shared_up = nn.Linear(width, 2 * inner, bias=False)
        self.shared_down = nn.Linear(inner, width, bias=False)
        self.routed_up = GroupedLinear(config.experts, width, 2 * inner)
        self.routed_down = GroupedLinear(config.experts, inner, width)

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """What the experts say about each token [B, T, D]."""
        weights_BTK, ids_BTK = self.router(tokens_BTD)
        ids_BR = ids_BTK.flatten(1)
        order = expert_order(ids_BR, self.experts)
        sorting = order._asdict()
        rows_BRD = tokens_BTD.repeat_interleave(ids_BTK.shape[2], dim=1)
        inner_BRI = _gated(self.routed_up(rows_BRD, ids_BR, **sorting))
        routed_BRD = self.routed_down(inner_BRI, ids_BR, **sorting)
        routed_BTKD = routed_BRD.unflatten(1, ids_BTK.shape[1:])
        routed_BTD = (routed_BTKD * weights_BTK.to(routed_BTKD.dtype).unsqueeze(3)).sum(2)
        return self.shared_down(_gated(self.shared_up(tokens_BTD))) + routed_BTD


def _gated(gate_and_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU (Shazeer 2020): one half of the numbers opens the other."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return silu(gate) * up
