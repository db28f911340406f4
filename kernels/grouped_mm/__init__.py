"""Grouped matrix product: consecutive rows of one matrix, each group times a matrix of its own.

Contract, the same for both twins:
    rows_NI      rows sorted by group, any number of them, none included
    weights_EIO  one matrix per group, of the same dtype as the rows
    offsets_E    int32, non-decreasing, where each group ends; the last one is N. A group may be empty.
    result       rows_NO; differentiable once in rows and weights, gradients of empty groups are zero
`grouped_outer` is the product of its backward pass: per group, the sum of the outer products of two matrices' rows.

`torch.nn.functional.grouped_mm` does the work wherever it can. It refuses float64 and strides that are not a multiple
of 16 bytes, raises on expanded gradients, and leaves rows past the last offset uninitialised: the first two go to the
reference, gradients are made contiguous, and the last is refused here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from kernels.grouped_mm.reference import grouped_matmul_reference, grouped_outer_reference

# N rows sorted by group, I inputs, O outputs, E groups

STOCK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STRIDE_BYTES = 16


def grouped_matmul(
    rows_NI: torch.Tensor, weights_EIO: torch.Tensor, offsets_E: torch.Tensor
) -> torch.Tensor:
    """Each group of rows times its matrix; the module docstring is the contract. Takes part in autocast.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    rows_NI, weights_EIO = _autocast(rows_NI), _autocast(weights_EIO)
    _require_contract(rows_NI, weights_EIO, offsets_E)
    if not _stock_takes(rows_NI, weights_EIO.shape[1:]):
        return grouped_matmul_reference(rows_NI, weights_EIO, offsets_E)
    product: torch.Tensor = _GroupedMatmul.apply(rows_NI, weights_EIO, offsets_E)
    return product


def grouped_outer(
    rows_NI: torch.Tensor, grads_NO: torch.Tensor, offsets_E: torch.Tensor
) -> torch.Tensor:
    """Per group, rows^T grads [E, I, O]: the gradient of the group's matrix. Zero for an empty group.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    if rows_NI.dim() != 2 or grads_NO.dim() != 2 or rows_NI.shape[0] != grads_NO.shape[0]:
        raise ValueError(
            f"Expected rows [N, I] and gradients [N, O], got {tuple(rows_NI.shape)} and "
            f"{tuple(grads_NO.shape)}."
        )
    _require_one_dtype(rows_NI, grads_NO)
    _require_offsets(offsets_E, rows_NI.shape[0])
    if not _stock_takes(rows_NI, (rows_NI.shape[1], grads_NO.shape[1])):
        return grouped_outer_reference(rows_NI, grads_NO, offsets_E)
    return grouped_mm(rows_NI.contiguous().t(), grads_NO.contiguous(), offs=offsets_E)


class _GroupedMatmul(torch.autograd.Function):
    """The stock product with a backward that never hands it a gradient it refuses."""

    @staticmethod
    def forward(
        ctx: Any, rows_NI: torch.Tensor, weights_EIO: torch.Tensor, offsets_E: torch.Tensor
    ) -> torch.Tensor:
        rows_NI, weights_EIO = rows_NI.contiguous(), weights_EIO.contiguous()
        ctx.save_for_backward(
            rows_NI if ctx.needs_input_grad[1] else None,
            weights_EIO if ctx.needs_input_grad[0] else None,
            offsets_E,
        )
        return grouped_mm(rows_NI, weights_EIO, offs=offsets_E)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_NO: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        rows_NI, weights_EIO, offsets_E = ctx.saved_tensors
        grad_NO = grad_NO.contiguous()
        grad_rows_NI = grad_weights_EIO = None
        if ctx.needs_input_grad[0]:
            grad_rows_NI = grouped_mm(grad_NO, weights_EIO.transpose(1, 2), offs=offsets_E)
        if ctx.needs_input_grad[1]:
            grad_weights_EIO = grouped_mm(rows_NI.t(), grad_NO, offs=offsets_E)
        return grad_rows_NI, grad_weights_EIO, None


def _autocast(values: torch.Tensor) -> torch.Tensor:
    """In the type that autocast asks for, as torch's own products are; float64 stays as it is there too."""
    device = values.device.type
    if values.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return values
    return values.to(torch.get_autocast_dtype(device))


def _stock_takes(rows_NI: torch.Tensor, sizes: Sequence[int]) -> bool:
    row_bytes = [size * rows_NI.element_size() for size in sizes]
    return (
        rows_NI.dtype in STOCK_DTYPES
        and rows_NI.shape[0] > 0
        and all(size > 0 and size % STRIDE_BYTES == 0 for size in row_bytes)
    )


def _require_contract(
    rows_NI: torch.Tensor, weights_EIO: torch.Tensor, offsets_E: torch.Tensor
) -> None:
    if rows_NI.dim() != 2 or weights_EIO.dim() != 3 or rows_NI.shape[1] != weights_EIO.shape[1]:
        raise ValueError(
            f"Expected rows [N, I] and weights [E, I, O], got {tuple(rows_NI.shape)} and "
            f"{tuple(weights_EIO.shape)}."
        )
    _require_one_dtype(rows_NI, weights_EIO)
    if offsets_E.shape != weights_EIO.shape[:1]:
        raise ValueError(
            f"Expected offsets of {weights_EIO.shape[0]} int32, got {tuple(offsets_E.shape)} "
            f"{offsets_E.dtype}."
        )
    _require_offsets(offsets_E, rows_NI.shape[0])


def _require_one_dtype(one: torch.Tensor, other: torch.Tensor) -> None:
    if one.dtype != other.dtype:
        raise ValueError(f"Expected one dtype, got {one.dtype} and {other.dtype}.")


def _require_offsets(offsets_E: torch.Tensor, rows: int) -> None:
    if offsets_E.dtype != torch.int32 or offsets_E.dim() != 1:
        raise ValueError(
            f"Expected offsets of int32 [E], got {tuple(offsets_E.shape)} {offsets_E.dtype}."
        )
    # On an accelerator reading the offsets would wait for all queued work, so they are trusted there.
    if offsets_E.device.type == "cpu":
        ends = [0, *offsets_E.tolist()]
        if ends != sorted(ends) or ends[-1] != rows:
            raise ValueError(
                f"Expected offsets that never fall and end at {rows} rows, got {ends[1:]}."
            )
