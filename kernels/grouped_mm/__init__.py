"""Grouped matrix product: consecutive rows of one matrix, each group times a matrix of its own.

Contract, the same for both twins:
    rows_NI      rows sorted by group, any number of them, none included
    weights_EIO  one matrix per group, of the same dtype as the rows
    offsets_E    int32, non-decreasing, where each group ends; the last one is N. A group may be empty.
    result       rows_NO; differentiable once in rows and weights, gradients of empty groups are zero

`torch.nn.functional.grouped_mm` does the work wherever it can. It refuses float64 and strides that are not a multiple
of 16 bytes, raises on expanded gradients, and leaves rows past the last offset uninitialised: the first two go to the
reference, gradients are made contiguous, and the last is refused here.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from kernels.grouped_mm.reference import grouped_matmul_reference

# N rows sorted by group, I inputs, O outputs, E groups

STOCK_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STRIDE_BYTES = 16


def grouped_matmul(
    rows_NI: torch.Tensor, weights_EIO: torch.Tensor, offsets_E: torch.Tensor
) -> torch.Tensor:
    """Each group of rows times its matrix; the module docstring is the contract.

    Raises:
        ValueError: shapes, dtypes or offsets do not fit together.
    """
    _require_contract(rows_NI, weights_EIO, offsets_E)
    if not _stock_takes(rows_NI, weights_EIO):
        return grouped_matmul_reference(rows_NI, weights_EIO, offsets_E)
    product: torch.Tensor = _GroupedMatmul.apply(rows_NI, weights_EIO, offsets_E)
    return product


class _GroupedMatmul(torch.autograd.Function):
    """The stock product with a backward that never hands it a gradient it refuses."""

    @staticmethod
    def forward(
        ctx: Any, rows_NI: torch.Tensor, weights_EIO: torch.Tensor, offsets_E: torch.Tensor
    ) -> torch.Tensor:
        rows_NI, weights_EIO = rows_NI.contiguous(), weights_EIO.contiguous()
        ctx.save_for_backward(rows_NI, weights_EIO, offsets_E)
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


def _stock_takes(rows_NI: torch.Tensor, weights_EIO: torch.Tensor) -> bool:
    row_bytes = [size * rows_NI.element_size() for size in weights_EIO.shape[1:]]
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
    if rows_NI.dtype != weights_EIO.dtype:
        raise ValueError(f"Expected one dtype, got {rows_NI.dtype} and {weights_EIO.dtype}.")
    if offsets_E.dtype != torch.int32 or offsets_E.shape != weights_EIO.shape[:1]:
        raise ValueError(
            f"Expected offsets of {weights_EIO.shape[0]} int32, got {tuple(offsets_E.shape)} "
            f"{offsets_E.dtype}."
        )
    # On an accelerator reading the offsets would wait for all queued work, so they are trusted there.
    if offsets_E.device.type == "cpu":
        ends = [0, *offsets_E.tolist()]
        if ends != sorted(ends) or ends[-1] != rows_NI.shape[0]:
            raise ValueError(
                f"Expected offsets that never fall and end at {rows_NI.shape[0]} rows, got {ends[1:]}."
            )
