"""Norms and gradients of single rows (patients) for the model's layers, in the form that Opacus calls.

`register_samplers()` hands them to Opacus; importing this file does nothing. A norm rule gets the layer, its
positional inputs and the gradient of its output, and returns each row's gradient norm per parameter, without forming
the gradient. The gradient rules form it; they serve as the oracle of the tests.

Norms are roots of sums of squares: `Tensor.norm` in float32 falls short by up to 4e-4 on long vectors, and a norm that
is too small is a bound that does not hold. Where a norm is the sum of a Gram product, terms of opposite sign may
cancel; the largest error that float32 products leave there is added, so the norm errs upwards.
"""

import torch
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from torch import Tensor, nn
from torch.nn.functional import one_hot, rms_norm

from model.moe import GroupedLinear
from model.tokenizers import FeatureLinear

# B rows (patients), T tokens, I inputs, O outputs, F features, W slots, D width, E experts, R expert rows per row

GRAM_ROUNDING = 3e-7
"""Relative error of a product of two float32 inner products, in units of the four vectors' norms."""

Samples = dict[Tensor, Tensor]


def register_samplers() -> None:
    """Makes the model's layers known to Opacus; calling it again changes nothing."""
    register_norm_sampler(nn.Linear)(linear_norms)
    register_norm_sampler(nn.RMSNorm)(rms_norm_norms)
    register_norm_sampler(FeatureLinear)(feature_linear_norms)
    register_norm_sampler(GroupedLinear)(grouped_linear_norms)
    register_grad_sampler(FeatureLinear)(feature_linear_gradients)
    register_grad_sampler(GroupedLinear)(grouped_linear_gradients)


def linear_norms(layer: nn.Linear, inputs: list[Tensor], backprops: Tensor) -> Samples:
    """Norms of weight and bias: over one vector or any number of tokens per row."""
    backprops_BTO = backprops.flatten(1, -2) if backprops.dim() > 2 else backprops.unsqueeze(1)
    norms = {}
    if layer.weight.requires_grad:
        inputs_BTI = inputs[0].reshape(*backprops_BTO.shape[:2], layer.in_features)
        norms[layer.weight] = _outer_sum_norms(inputs_BTI, backprops_BTO)
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = _row_norms(backprops_BTO.sum(1))
    return norms


def rms_norm_norms(layer: nn.RMSNorm, inputs: list[Tensor], backprops: Tensor) -> Samples:
    """Norm of the scale: the normalised inputs times what comes back, summed over tokens."""
    normalised = rms_norm(inputs[0], layer.normalized_shape, eps=layer.eps)
    terms = (normalised * backprops).flatten(-len(layer.normalized_shape))
    return {layer.weight: _row_norms(terms.flatten(1, -2).sum(1) if terms.dim() > 2 else terms)}


def feature_linear_norms(layer: FeatureLinear, inputs: list[Tensor], backprops: Tensor) -> Samples:
    """Every feature has a matrix of its own, whose gradient is one outer product: norms multiply."""
    squares_BF = inputs[0].square().sum(-1) * backprops.square().sum(-1)
    return {layer.weight: squares_BF.sum(1).sqrt()}


def grouped_linear_norms(layer: GroupedLinear, inputs: list[Tensor], backprops: Tensor) -> Samples:
    """The squared norm of sum_r x_r g_r^T per expert: inner products of row pairs that share the expert."""
    rows_BRI, expert_ids_BR = inputs
    is_shared_BRR = expert_ids_BR.unsqueeze(2) == expert_ids_BR.unsqueeze(1)
    return {layer.weight: _gram_norms(rows_BRI, backprops, is_shared_BRR)}


def feature_linear_gradients(
    layer: FeatureLinear, inputs: list[Tensor], backprops: Tensor
) -> Samples:
    """Each row's gradient [B, F, W, D]."""
    return {layer.weight: torch.einsum("bfw,bfd->bfwd", inputs[0], backprops)}


def grouped_linear_gradients(
    layer: GroupedLinear, inputs: list[Tensor], backprops: Tensor
) -> Samples:
    """Each row's gradient [B, E, I, O]; zero for experts that the row did not visit."""
    rows_BRI, expert_ids_BR = inputs
    visits_BRE = one_hot(expert_ids_BR, layer.weight.shape[0]).to(backprops.dtype)
    return {layer.weight: torch.einsum("bre,bri,bro->beio", visits_BRE, rows_BRI, backprops)}


def _outer_sum_norms(inputs_BTI: Tensor, backprops_BTO: Tensor) -> Tensor:
    """Norm of each row's sum_t x_t g_t^T, by whichever way needs fewer products."""
    tokens, sizes = inputs_BTI.shape[1], (inputs_BTI.shape[2], backprops_BTO.shape[2])
    if tokens == 1:
        return _row_norms(inputs_BTI.squeeze(1)) * _row_norms(backprops_BTO.squeeze(1))
    if tokens * sum(sizes) < sizes[0] * sizes[1]:
        return _gram_norms(inputs_BTI, backprops_BTO, None)
    return _row_norms(torch.bmm(inputs_BTI.transpose(1, 2), backprops_BTO).flatten(1))


def _gram_norms(inputs_BTI: Tensor, backprops_BTO: Tensor, is_counted_BTT: Tensor | None) -> Tensor:
    """Root of sum_{s,t} (x_s . x_t)(g_s . g_t) over the pairs that count, never below the true norm."""
    input_gram_BTT = torch.bmm(inputs_BTI, inputs_BTI.transpose(1, 2))
    backprop_gram_BTT = torch.bmm(backprops_BTO, backprops_BTO.transpose(1, 2))
    products_BTT = input_gram_BTT.mul_(backprop_gram_BTT)
    sizes_BT = products_BTT.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt()
    rounding_B = GRAM_ROUNDING * sizes_BT.sum(1).square()
    if is_counted_BTT is not None:
        products_BTT = products_BTT * is_counted_BTT
    return (products_BTT.sum((1, 2)).clamp(min=0.0) + rounding_B).sqrt()


def _row_norms(rows_BX: Tensor) -> Tensor:
    return rows_BX.square().sum(1).sqrt()
