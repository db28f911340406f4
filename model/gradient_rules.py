"""Rules for the model's own layers: what each unit's gradient is, as factors, in the form that `privacy.dp` calls.

`privacy.dp.rules` describes what a rule does; `MODEL_RULES` together with its standard rules covers the whole model. A
unit (patient) may have several records: rules get rows `[U, R, ...]`, and a unit's gradient is the sum over its records.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels.ghost_norm import grouped_outer_sum_squared_norms, outer_sum_squared_norms
from kernels.grouped_mm import grouped_outer
from model.moe import GroupedLinear, expert_order
from model.tokenizers import FeatureLinear

# U units, R records of a unit, F features, W slots, D width, S expert rows of a unit, N expert rows, I inputs,
# O outputs, E experts


class FeatureLinearRule:
    """`FeatureLinear`: a matrix per feature, whose gradient is one outer product per record."""

    parameters = frozenset({"weight"})

    def refusal(self, layer: FeatureLinear) -> str | None:
        """Nothing to refuse."""
        return None

    def gradients(
        self,
        layer: FeatureLinear,
        inputs: Sequence[Tensor],
        backprops: Tensor,
        names: Collection[str],
    ) -> Mapping[str, "FeatureGradients"]:
        """The units' gradients of the weight."""
        return {"weight": FeatureGradients(inputs[0], backprops)}


class FeatureGradients:
    """Per unit and feature sum_r x_r g_r^T."""

    def __init__(self, slots_URFW: Tensor, grads_URFD: Tensor) -> None:
        self._slots_URFW = slots_URFW
        self._grads_URFD = grads_URFD

    def squared_norms(self) -> Tensor:
        """Squared norm of each unit's gradient [U]."""
        units, _, features, _ = self._slots_URFW.shape
        slots = self._slots_URFW.transpose(1, 2).flatten(0, 1)
        grads = self._grads_URFD.transpose(1, 2).flatten(0, 1)
        return outer_sum_squared_norms(slots, grads).view(units, features).sum(1)

    def weighted_sum(self, weights_U: Tensor) -> Tensor:
        """The units' gradients times their weights, added up [F, W, D]."""
        slots, grads = _wide(self._slots_URFW), _wide(self._grads_URFD)
        scaled = (slots * weights_U.to(slots.dtype).view(-1, 1, 1, 1)).flatten(0, 1)
        return torch.bmm(scaled.permute(1, 2, 0), grads.flatten(0, 1).transpose(0, 1))


class GroupedLinearRule:
    """`GroupedLinear`: a matrix per expert, whose gradient is the sum over the rows that visited it."""

    parameters = frozenset({"weight"})

    def refusal(self, layer: GroupedLinear) -> str | None:
        """Nothing to refuse."""
        return None

    def gradients(
        self,
        layer: GroupedLinear,
        inputs: Sequence[Tensor],
        backprops: Tensor,
        names: Collection[str],
    ) -> Mapping[str, "ExpertGradients"]:
        """The units' gradients of the weights of all experts."""
        rows_URSI, ids_URS = inputs
        return {
            "weight": ExpertGradients(
                rows_URSI.flatten(1, 2),
                backprops.flatten(1, 2),
                ids_URS.flatten(1),
                layer.weight.shape[0],
            )
        }


class ExpertGradients:
    """Per unit and expert sum_s x_s g_s^T over the rows that visited the expert; zero for experts without a row."""

    def __init__(
        self, rows_USI: Tensor, grads_USO: Tensor, expert_ids_US: Tensor, experts: int
    ) -> None:
        self._rows_USI = rows_USI
        self._grads_USO = grads_USO
        self._expert_ids_US = expert_ids_US
        self._experts = experts

    def squared_norms(self) -> Tensor:
        """Squared norm of each unit's gradient over all experts [U]."""
        return grouped_outer_sum_squared_norms(
            self._rows_USI, self._grads_USO, self._expert_ids_US, self._experts
        )

    def weighted_sum(self, weights_U: Tensor) -> Tensor:
        """The units' gradients times their weights, added up [E, I, O]."""
        order = expert_order(self._expert_ids_US, self._experts)
        rows_NI = _wide(self._rows_USI).flatten(0, 1).index_select(0, order.permutation)
        grads_NO = _wide(self._grads_USO).flatten(0, 1).index_select(0, order.permutation)
        weights_N = weights_U.repeat_interleave(self._expert_ids_US.shape[1])
        # The sorted copies are ours: the narrower one is scaled in place.
        narrow = rows_NI if rows_NI.shape[1] <= grads_NO.shape[1] else grads_NO
        narrow.mul_(weights_N.index_select(0, order.permutation).to(narrow.dtype).unsqueeze(1))
        return grouped_outer(rows_NI, grads_NO, order.offsets)


MODEL_RULES: Mapping[type[nn.Module], Any] = {
    FeatureLinear: FeatureLinearRule(),
    GroupedLinear: GroupedLinearRule(),
}


def _wide(values: Tensor) -> Tensor:
    """At least float32, as the norms are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
