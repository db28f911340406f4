"""Ghost norms: how large a unit's weight gradient is, without keeping the gradient.

A unit's rows x_t and the gradients g_t of their products give the weight the gradient sum_t x_t g_t^T. Contract:
    rows_BTI     rows of B units, T each
    grads_BTO    gradients of the products
    ids_BT       the group (expert) of each row in [0, groups), where every group has a matrix of its own
    result       squared Frobenius norms [B] in at least float32, never below the true one by more than a few roundings;
                 a unit with a number that is not finite gets a result that is not finite, and touches no other unit's

Two ways lead there, and the cheaper one is taken:
- Gram (Li et al. 2022, "Large Language Models Can Be Strong Differentially Private Learners", eq. 2):
  sum_{s,t} (x_s . x_t)(g_s . g_t), over pairs of the same group. Cost T^2 (I + O) per unit. Terms of opposite sign may
  cancel; the largest error that rounding leaves there is added, so the norm errs upwards;
- direct: the gradients of a few units at a time are formed, squared and dropped. Cost T I O, however long T is.
"""

import torch

from kernels.grouped_mm import grouped_outer

# B units, T rows of a unit, I inputs, O outputs, G groups, S segments = units x groups

GRAM_ROUNDING = 2.5
"""Relative error of a product of two inner products, in units of the dtype's epsilon and of the four vectors' norms."""
FORMED_NUMBERS = 2**21
"""Numbers of gradients formed at a time, so that they stay in a processor's cache."""


def outer_sum_squared_norms(rows_BTI: torch.Tensor, grads_BTO: torch.Tensor) -> torch.Tensor:
    """Squared norm of each unit's sum_t x_t g_t^T [B].

    Raises:
        ValueError: the numbers of units or rows differ.
    """
    _require_pairs(rows_BTI, grads_BTO)
    rows_BTI, grads_BTO = _wide(rows_BTI), _wide(grads_BTO)
    tokens, inputs, outputs = *rows_BTI.shape[1:], grads_BTO.shape[2]
    if tokens == 1:
        return _squared_norms(rows_BTI.flatten(1)) * _squared_norms(grads_BTO.flatten(1))
    if tokens * (inputs + outputs) < inputs * outputs:
        return _gram(rows_BTI, grads_BTO, None)
    units_at_once = max(1, FORMED_NUMBERS // max(1, inputs * outputs))
    pieces = zip(rows_BTI.split(units_at_once), grads_BTO.split(units_at_once), strict=True)
    formed = [_squared_norms(torch.bmm(x.transpose(1, 2), g).flatten(1)) for x, g in pieces]
    return torch.cat(formed)


def grouped_outer_sum_squared_norms(
    rows_BTI: torch.Tensor, grads_BTO: torch.Tensor, ids_BT: torch.Tensor, groups: int
) -> torch.Tensor:
    """The same with a matrix per group: each unit's squared norm over the matrices of all groups [B].

    Raises:
        ValueError: the numbers of units or rows differ.
    """
    _require_pairs(rows_BTI, grads_BTO)
    if ids_BT.shape != rows_BTI.shape[:2]:
        raise ValueError(f"Expected ids {tuple(rows_BTI.shape[:2])}, got {tuple(ids_BT.shape)}.")
    rows_BTI, grads_BTO = _wide(rows_BTI), _wide(grads_BTO)
    tokens, inputs, outputs = *rows_BTI.shape[1:], grads_BTO.shape[2]
    if tokens == 1:
        return _squared_norms(rows_BTI.flatten(1)) * _squared_norms(grads_BTO.flatten(1))
    if tokens * (inputs + outputs) < inputs * outputs:
        return _gram(rows_BTI, grads_BTO, ids_BT)
    units_at_once = max(1, FORMED_NUMBERS // max(1, groups * inputs * outputs))
    pieces = zip(
        rows_BTI.split(units_at_once),
        grads_BTO.split(units_at_once),
        ids_BT.split(units_at_once),
        strict=True,
    )
    return torch.cat([_grouped_direct(x, g, ids, groups) for x, g, ids in pieces])


def _gram(
    rows_BTI: torch.Tensor, grads_BTO: torch.Tensor, ids_BT: torch.Tensor | None
) -> torch.Tensor:
    products_BTT = torch.bmm(rows_BTI, rows_BTI.transpose(1, 2))
    products_BTT.mul_(torch.bmm(grads_BTO, grads_BTO.transpose(1, 2)))
    sizes_BT1 = products_BTT.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt().unsqueeze(2)
    if ids_BT is None:
        pairs_B = sizes_BT1.sum((1, 2)).square()
    else:
        is_pair_BTT = (ids_BT.unsqueeze(2) == ids_BT.unsqueeze(1)).to(products_BTT.dtype)
        products_BTT.mul_(is_pair_BTT)
        pairs_B = (sizes_BT1 * torch.bmm(is_pair_BTT, sizes_BT1)).sum((1, 2))
    rounding = GRAM_ROUNDING * torch.finfo(products_BTT.dtype).eps
    return products_BTT.sum((1, 2)).clamp(min=0.0) + rounding * pairs_B


def _grouped_direct(
    rows_BTI: torch.Tensor, grads_BTO: torch.Tensor, ids_BT: torch.Tensor, groups: int
) -> torch.Tensor:
    """Rows sorted by unit and group form one matrix per unit and group."""
    units = len(rows_BTI)
    segment_BT = ids_BT + groups * torch.arange(units, device=ids_BT.device).unsqueeze(1)
    segments_N = segment_BT.flatten()
    order_N = torch.argsort(segments_N, stable=True)
    offsets_S = torch.bincount(segments_N, minlength=units * groups).cumsum(0).to(torch.int32)
    formed_SIO = grouped_outer(
        rows_BTI.flatten(0, 1).index_select(0, order_N),
        grads_BTO.flatten(0, 1).index_select(0, order_N),
        offsets_S,
    )
    return _squared_norms(formed_SIO.unflatten(0, (units, groups)).flatten(1))


def _squared_norms(rows_BX: torch.Tensor) -> torch.Tensor:
    """Sums of squares: `Tensor.norm` falls short by up to 4e-4 on long vectors in float32."""
    return rows_BX.square().sum(1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _require_pairs(rows_BTI: torch.Tensor, grads_BTO: torch.Tensor) -> None:
    if rows_BTI.dim() != 3 or grads_BTO.dim() != 3 or rows_BTI.shape[:2] != grads_BTO.shape[:2]:
        raise ValueError(
            f"Expected rows [B, T, I] and gradients [B, T, O], got {tuple(rows_BTI.shape)} and "
            f"{tuple(grads_BTO.shape)}."
        )
