"""The grouped matrix product as a plain loop over the groups: the twin to be read, and the fallback.

It takes every floating type, float64 included, and every size. Autograd differentiates it.
"""

from itertools import pairwise

import torch

# N rows sorted by group, I inputs, O outputs, E groups


def grouped_matmul_reference(
    rows_NI: torch.Tensor, weights_EIO: torch.Tensor, offsets_E: torch.Tensor
) -> torch.Tensor:
    """Rows `offsets_E[e - 1]` up to `offsets_E[e]` times the matrix `weights_EIO[e]`, for every e."""
    starts = [0, *offsets_E.tolist()]
    groups = zip(weights_EIO, starts, starts[1:], strict=False)
    return torch.cat([rows_NI[start:end] @ weight_IO for weight_IO, start, end in groups])


def grouped_outer_reference(
    rows_NI: torch.Tensor, grads_NO: torch.Tensor, offsets_E: torch.Tensor
) -> torch.Tensor:
    """Rows `offsets_E[e - 1]` up to `offsets_E[e]`, transposed, times the same rows of the gradients, for every e."""
    result_EIO = rows_NI.new_empty(len(offsets_E), rows_NI.shape[1], grads_NO.shape[1])
    for group, (start, end) in enumerate(pairwise([0, *offsets_E.tolist()])):
        result_EIO[group] = rows_NI[start:end].T @ grads_NO[start:end]
    return result_EIO
