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
With groups, rows that share unit and group make a segment. Where that saves work, segments of about the same length are
stacked and treated as units of their own; where units are short, one Gram product with a mask is faster.
"""

import torch

# B units, T rows of a unit, I inputs, O outputs, N rows, S segments of about the same length, L that length

GRAM_ROUNDING = 2.5
"""Relative error of a product of two inner products, in units of the dtype's epsilon and of the four vectors' norms."""
FORMED_NUMBERS = 2**19
"""Numbers of gradients formed at a time: 2 MB stay in a processor's cache (44 ms where 2**21 takes 58 ms)."""
LONGEST_MASKED = 40
"""Rows of a unit up to which one masked Gram product is faster than sorting (measured on a CPU, 128 x 512 and 8 groups)."""


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
    if rows_BTI.shape[1] == 1:
        return outer_sum_squared_norms(rows_BTI, grads_BTO)
    rows_BTI, grads_BTO = _wide(rows_BTI), _wide(grads_BTO)
    tokens, inputs, outputs = *rows_BTI.shape[1:], grads_BTO.shape[2]
    if tokens <= LONGEST_MASKED and tokens * (inputs + outputs) < inputs * outputs:
        return _gram(rows_BTI, grads_BTO, ids_BT)
    return _segmented(rows_BTI, grads_BTO, ids_BT, groups)


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


def _segmented(
    rows_BTI: torch.Tensor, grads_BTO: torch.Tensor, ids_BT: torch.Tensor, groups: int
) -> torch.Tensor:
    """Segments of about the same length are stacked, filled up with zeros, and their squared norms added per unit."""
    units, tokens = ids_BT.shape
    unit_B1 = torch.arange(units, device=ids_BT.device).unsqueeze(1)
    segments_N = (ids_BT + groups * unit_B1).flatten()
    order_N = torch.argsort(segments_N, stable=True)
    lengths = torch.bincount(segments_N, minlength=units * groups)
    starts, stacked = lengths.cumsum(0) - lengths, _stacked_lengths(lengths)
    totals_B = grads_BTO.new_zeros(units)
    for length in stacked.unique().tolist():
        if length == 0:
            continue
        chosen_S = (stacked == length).nonzero().squeeze(1)
        offsets_L = torch.arange(length, device=ids_BT.device)
        places_SL = starts[chosen_S].unsqueeze(1) + offsets_L
        is_filler_SL = offsets_L >= lengths[chosen_S].unsqueeze(1)
        found_N = order_N[places_SL.clamp(max=units * tokens - 1).flatten()]
        fillers = is_filler_SL.flatten().nonzero().squeeze(1)
        # Both are filled up: a row of the next segment may hold a number that is not finite.
        rows_SLI, grads_SLO = (
            values.flatten(0, 1)
            .index_select(0, found_N)
            .index_fill_(0, fillers, 0.0)
            .unflatten(0, places_SL.shape)
            for values in (rows_BTI, grads_BTO)
        )
        norms_S = outer_sum_squared_norms(rows_SLI, grads_SLO)
        totals_B.index_add_(0, chosen_S.div(groups, rounding_mode="floor"), norms_S)
    return totals_B


def _stacked_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Lengths rounded up to 3 binary digits: few different ones, and less than a quarter of fillers."""
    exponents = (lengths.clamp(min=1).log2().floor() - 2).clamp(min=0)
    steps = exponents.exp2().to(lengths.dtype)
    return (lengths + steps - 1).div(steps, rounding_mode="floor") * steps


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
