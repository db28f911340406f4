"""Ghost norms as a plain loop that forms every gradient: the twin to be read, and the oracle of the tests."""

import torch

# B segments, T rows of a segment, I inputs, O outputs, G groups


def outer_sum_squared_norms_reference(
    rows_BTI: torch.Tensor, grads_BTO: torch.Tensor
) -> torch.Tensor:
    """|sum_t x_t g_t^T|^2 of each segment [B]."""
    formed = [rows_TI.T @ grads_TO for rows_TI, grads_TO in zip(rows_BTI, grads_BTO, strict=True)]
    return torch.stack([gradient_IO.square().sum() for gradient_IO in formed])


def grouped_outer_sum_squared_norms_reference(
    rows_BTI: torch.Tensor, grads_BTO: torch.Tensor, group_ids_BT: torch.Tensor, groups: int
) -> torch.Tensor:
    """The same with a matrix per group: the sum of the groups' squared norms [B]."""
    totals = torch.zeros_like(rows_BTI[:, 0, 0])
    for group in range(groups):
        members_BT1 = (group_ids_BT == group).unsqueeze(2).to(rows_BTI.dtype)
        totals = totals + outer_sum_squared_norms_reference(rows_BTI * members_BT1, grads_BTO)
    return totals
