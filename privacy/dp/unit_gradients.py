"""The gradients of one parameter, one per unit, in the forms in which layers leave them: factors rather than numbers.

A weight's gradient is a sum of outer products of two vectors, so its norm and the weighted sum over all units follow
from the vectors. Where gradients are small, such as those of biases, they are formed. All is computed in at least
float32: operands in half precision are widened first, by the norm and by the sum alike.
"""

from typing import Protocol

import torch
from torch import Tensor

from kernels.ghost_norm import outer_sum_squared_norms

# U units, T tokens of a unit, G groups, I inputs, O outputs, P numbers of the parameter, V rows of a table, D width


class UnitGradients(Protocol):
    """The gradients of one parameter, one for each unit."""

    def squared_norms(self) -> Tensor:
        """Squared L2 norms [U], never below the true ones by more than rounding."""
        ...

    def weighted_sum(self, weights_U: Tensor) -> Tensor:
        """The gradients, each times its unit's weight, added up: of the parameter's shape."""
        ...


class FormedGradients:
    """Gradients that are small enough to be written down [U, *shape]."""

    def __init__(self, gradients: Tensor) -> None:
        self._gradients = gradients

    def squared_norms(self) -> Tensor:
        """See `UnitGradients`."""
        return self._gradients.flatten(1).square().sum(1)

    def weighted_sum(self, weights_U: Tensor) -> Tensor:
        """See `UnitGradients`."""
        total_P = weights_U.to(self._gradients.dtype) @ self._gradients.flatten(1)
        return total_P.view(self._gradients.shape[1:])


class OuterProducts:
    """Gradients sum_t g_t x_t^T of a weight [O, I], or of one such block for each of G groups [G, O, I]."""

    def __init__(self, rows_UTGI: Tensor, grads_UTGO: Tensor, shape: torch.Size) -> None:
        self._rows_UTGI = rows_UTGI
        self._grads_UTGO = grads_UTGO
        self._shape = shape

    def squared_norms(self) -> Tensor:
        """See `UnitGradients`."""
        units, _, groups, _ = self._rows_UTGI.shape
        blocks = outer_sum_squared_norms(
            self._rows_UTGI.transpose(1, 2).flatten(0, 1),
            self._grads_UTGO.transpose(1, 2).flatten(0, 1),
        )
        return blocks.view(units, groups).sum(1)

    def weighted_sum(self, weights_U: Tensor) -> Tensor:
        """See `UnitGradients`."""
        rows, grads = wide(self._rows_UTGI), wide(self._grads_UTGO)
        weights = weights_U.to(rows.dtype).view(-1, 1, 1, 1)
        # The narrower operand is scaled, because that makes a copy of it.
        if rows.shape[3] <= grads.shape[3]:
            rows = rows * weights
        else:
            grads = grads * weights
        rows_GNI = rows.flatten(0, 1).transpose(0, 1)
        grads_GNO = grads.flatten(0, 1).transpose(0, 1)
        return torch.bmm(grads_GNO.transpose(1, 2), rows_GNI).view(self._shape)


class TableRows:
    """Gradients of a table of which every unit used a few rows, some of them several times."""

    def __init__(self, ids_UT: Tensor, grads_UTD: Tensor, shape: torch.Size) -> None:
        units, rows = len(ids_UT), shape[0]
        place_UT = ids_UT + rows * torch.arange(units, device=ids_UT.device).unsqueeze(1)
        self._places, segment_N = place_UT.flatten().unique(return_inverse=True)
        sums = wide(grads_UTD).new_zeros(len(self._places), shape[1], dtype=wide(grads_UTD).dtype)
        self._sums = sums.index_add(0, segment_N, wide(grads_UTD).flatten(0, 1))
        self._units = units
        self._shape = shape

    def squared_norms(self) -> Tensor:
        """See `UnitGradients`."""
        squares = self._sums.square().sum(1)
        unit = self._places.div(self._shape[0], rounding_mode="floor")
        return squares.new_zeros(self._units).index_add(0, unit, squares)

    def weighted_sum(self, weights_U: Tensor) -> Tensor:
        """See `UnitGradients`."""
        unit = self._places.div(self._shape[0], rounding_mode="floor")
        scaled = self._sums * weights_U.to(self._sums.dtype).index_select(0, unit).unsqueeze(1)
        total_VD = scaled.new_zeros(self._shape)
        return total_VD.index_add(0, self._places.remainder(self._shape[0]), scaled)


def wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
