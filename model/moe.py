"""Mixture of experts: one shared expert for every token and `top_k` of the routed experts.

1. The router scores every expert for every token. A frozen balance bias per expert is added for the choice of the best
   `top_k`, and in training Gumbel noise, which turns the choice into a draw without replacement.
2. The softmax of the scores without bias and noise, rescaled over the chosen experts, weighs their outputs.
3. Rows, one per token and chosen expert, are sorted by expert once per block and go through grouped products.

Every patient's tokens are treated alone: no capacity, no dropped token, no statistic over the batch, no state. That is
what makes a bound on one patient's gradient a bound on that patient's influence. The balance bias is no exception: it
is the same number for everybody, and `model.routing.balanced_bias` moves it between rounds from released loads only
(a bias moved by the loads of the batch itself would tell who was in it). The noise must be secret wherever
differential privacy is claimed: with noise that is known, removing one patient would shift the noise of the others.

What the router decided is returned, never kept: modules hold parameters and nothing that a record could have touched.
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
    inverse: torch.Tensor
    """Takes them back [N]."""
    offsets: torch.Tensor
    """Where each expert's group ends, int32 [E]."""


def expert_order(expert_ids_BR: torch.Tensor, experts: int) -> ExpertOrder:
    """The stable order of expert rows by expert; experts without a row have empty groups."""
    ids_N = expert_ids_BR.flatten()
    counts_E = torch.bincount(ids_N, minlength=experts)
    permutation = torch.argsort(ids_N, stable=True)
    return ExpertOrder(
        permutation=permutation,
        inverse=_inverse(permutation),
        offsets=counts_E.cumsum(0).to(torch.int32),
    )


def _inverse(permutation_N: torch.Tensor) -> torch.Tensor:
    places_N = torch.arange(permutation_N.shape[0], device=permutation_N.device)
    return torch.empty_like(permutation_N).scatter_(0, permutation_N, places_N)


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
        inverse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each row times the matrix of its expert [B, R, O], in the order in which the rows came.

        The keywords are `expert_order(expert_ids_BR, experts)`, the same for all layers of a block; `inverse` follows
        from `permutation` and is given to save the work. The ids themselves are an argument for those who observe the
        layer, such as per-patient clipping.
        """
        if inverse is None:
            inverse = _inverse(permutation)
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


class Routing(NamedTuple):
    """What a block's router thought of the tokens, and whom they visited."""

    scores_BTE: torch.Tensor  # noqa: N815 - shape suffix
    """Scores without bias and noise, in float32 at least; they carry gradients."""
    ids_BTK: torch.Tensor  # noqa: N815 - shape suffix
    """Chosen experts, no two of a token the same."""

    @property
    def weights_BTK(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """Weights of the chosen experts; those of a token sum to 1."""
        # The softmax over all experts, rescaled over the chosen ones, is the softmax over the chosen ones.
        return self.scores_BTE.gather(-1, self.ids_BTK).softmax(-1)


class Router(nn.Module):
    """Which experts a token visits, and with what weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.gumbel_scale = config.gumbel_scale
        self.noise_generator: torch.Generator | None = None
        self.scores = nn.Linear(config.width, config.experts, bias=False)
        # Part of the model and its file, but not of training: Wang et al. 2024, arXiv 2408.15664, with released loads.
        self.balance_bias = nn.Parameter(torch.zeros(config.experts), requires_grad=False)

    def forward(self, tokens_BTD: torch.Tensor, noise_BTE: torch.Tensor | None) -> Routing:
        """The routing of the tokens; `noise_BTE` is what `draw_noise` gave."""
        scores_BTE = self.scores(tokens_BTD)
        # A choice in half precision would have ties; float64 stays as it is.
        scores_BTE = scores_BTE.to(torch.promote_types(scores_BTE.dtype, torch.float32))
        appeal_BTE = scores_BTE.detach() + self.balance_bias
        if noise_BTE is not None:
            appeal_BTE = appeal_BTE + noise_BTE
        return Routing(scores_BTE, appeal_BTE.topk(self.top_k, dim=-1).indices)

    def draw_noise(self, rows: int, tokens: int) -> torch.Tensor | None:
        """Gumbel noise on the scores [B, T, E] in training, None at inference.

        It is drawn outside `forward` so that a block that is computed a second time, to save memory, chooses the same.
        """
        if not self.training or self.gumbel_scale == 0.0:
            return None
        uniform_BTE = torch.rand(
            (rows, tokens, self.balance_bias.shape[0]),
            generator=self.noise_generator,
            device=self.balance_bias.device,
        )
        return uniform_BTE.log_().neg_().log_().mul_(-self.gumbel_scale)


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

    def forward(
        self, tokens_BTD: torch.Tensor, noise_BTE: torch.Tensor | None
    ) -> tuple[torch.Tensor, Routing]:
        """What the experts say about each token [B, T, D], and which were asked."""
        routing = self.router(tokens_BTD, noise_BTE)
        ids_BTK = routing.ids_BTK
        ids_BR = ids_BTK.flatten(1)
        sorting = expert_order(ids_BR, self.experts)._asdict()
        rows_BRD = tokens_BTD.repeat_interleave(ids_BTK.shape[2], dim=1)
        inner_BRI = _gated(self.routed_up(rows_BRD, ids_BR, **sorting))
        routed_BRD = self.routed_down(inner_BRI, ids_BR, **sorting)
        routed_BTKD = routed_BRD.unflatten(1, ids_BTK.shape[1:])
        weights_BTK = routing.weights_BTK.to(routed_BTKD.dtype)
        routed_BTD = (routed_BTKD * weights_BTK.unsqueeze(3)).sum(2)
        return self.shared_down(_gated(self.shared_up(tokens_BTD))) + routed_BTD, routing


def _gated(gate_and_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU (Shazeer 2020): one half of the numbers opens the other."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return silu(gate) * up
