"""How evenly records use the experts: a loss per record, loads that may be released, and what follows from them.

1. `RoutedModel` is the model as training sees it: the logits and, of every record by itself, its balance loss and its
   loads. Nothing is computed over the batch: under differential privacy a batch's loads would tell who was in it.
2. A record's balance loss (DeepSeek-V3, arXiv 2412.19437, eq. 17-20) pushes its own tokens apart.
3. A record's loads have length <= 1, so that their sum can be released with noise, as more coordinates of the sum of
   clipped gradients.
4. `balanced_bias` is the coordinator's part: from released loads it moves the balance biases of the routers, which act
   on the choice of experts and on nothing else. It works on the flat vector; what is released costs nothing more.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.build import TabularModel
from model.config import ModelConfig
from model.moe import Routing
from model.parameters import ParameterSlot, Vector, parameter_layout
from model.schema import TableSchema

# B records, C columns, T tokens, L layers, E experts, K experts per token, S = L * E

LARGEST_BIAS = 10.0
"""Bound on a balance bias, in units of router scores: makes an expert e^10 times likelier, and noise cannot run away."""
LOAD_MARGIN = 1.0 - 1e-6
"""Keeps a record's loads at length <= 1 when they are rounded to float32."""


class RoutedOutput(NamedTuple):
    """What the model says about each record, and how it routed the record."""

    logits_B: torch.Tensor  # noqa: N815 - shape suffix
    """Log-odds of the positive class."""
    balance_B: torch.Tensor  # noqa: N815 - shape suffix
    """Balance loss: 1 where the record's tokens spread evenly, at most E; carries gradients."""
    loads_BS: torch.Tensor  # noqa: N815 - shape suffix
    """Loads of all experts, block after block; every row has length <= 1. No gradients."""


class RoutedModel(nn.Module):
    """A model that also tells how it routed. Its parameters are the model's own, in the same order."""

    def __init__(self, model: TabularModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, values_BC: torch.Tensor) -> RoutedOutput:
        """Logits, balance loss and loads of each record."""
        logits_B, routings = self.model.logits_and_routing(values_BC)
        return RoutedOutput(logits_B, balance_loss(routings), expert_loads(routings))


def balance_loss(routings: Sequence[Routing]) -> torch.Tensor:
    """Balance loss of each record [B], mean over the blocks: 1 where its tokens use all experts alike, at most E.

    Per block E * sum_e f_e p_e, with f_e the fraction of the record's choices that fell on expert e and p_e the mean
    over its tokens of the softmax of the scores. Gradients flow through p. Of a block that routes one token only, the
    loss is lowest where the token's scores are even: nothing else can be asked of one token.
    """
    losses_LB = []
    for routing in routings:
        probabilities_BE = routing.scores_BTE.softmax(-1).mean(1)
        terms_BE = _fractions(routing) * probabilities_BE
        losses_LB.append(routing.scores_BTE.shape[2] * terms_BE.sum(1))
    return torch.stack(losses_LB).mean(0)


def expert_loads(routings: Sequence[Routing]) -> torch.Tensor:
    """The fractions of each record's choices that fell on each expert, block after block, to length <= 1 [B, S].

    A token's K choices differ, so no fraction f_e is above 1/K, and a block's fractions, which sum to 1, have length
    <= K^-1/2: those of L blocks, times (K/L)^1/2, have length <= 1.
    """
    scale = _load_scale(routings[0].ids_BTK.shape[2], len(routings))
    return scale * torch.cat([_fractions(routing) for routing in routings], dim=1)


def load_count(config: ModelConfig) -> int:
    """Numbers in the loads of a record [S]."""
    return config.layers * config.experts


def load_fractions(
    loads_S: NDArray[np.floating], config: ModelConfig
) -> NDArray[np.float64] | None:
    """Released loads, summed over any number of records, as the fraction of choices per block and expert [L, E].

    The fractions of a block sum to 1; noise may take single ones below 0. None where the sum says nothing: no record,
    or fewer than the noise hides.

    Raises:
        ValueError: another number of loads than the model has, or loads that are not finite.
    """
    if loads_S.shape != (load_count(config),) or not np.isfinite(loads_S).all():
        raise ValueError(
            f"Expected {load_count(config)} finite loads, got an array of shape {loads_S.shape} or one not finite."
        )
    loads_LE = loads_S.astype(np.float64).reshape(config.layers, config.experts)
    # Every record adds the same to each block's sum: what blocks differ by is noise, so their mean is the better figure.
    total = float(loads_LE.sum(1).mean())
    if total <= 0.0:
        return None
    return 1.0 / config.experts + (loads_LE - loads_LE.mean(1, keepdims=True)) / total


def bias_slots(config: ModelConfig, table: TableSchema) -> tuple[ParameterSlot, ...]:
    """Where the balance biases of each block stand in the flat vector, in the order of the blocks."""
    slots = {slot.name: slot for slot in parameter_layout(config, table)}
    return tuple(
        slots[f"trunk.blocks.{place}.moe.router.balance_bias"] for place in range(config.layers)
    )


def balanced_bias(
    vector: Vector,
    loads_S: NDArray[np.floating] | None,
    config: ModelConfig,
    table: TableSchema,
    rate: float,
) -> Vector:
    """The model with balance biases moved against the loads: down where an expert has too many choices, up where few.

    The step of an expert is rate * (1 - E * fraction), within +-rate: the proportional form of Wang et al. 2024, arXiv
    2408.15664, which unlike the sign comes to rest under noise. The biases of a block are centred, which changes no
    choice, and stay within `LARGEST_BIAS`.

    Args:
        vector: the model [P]; it is not changed, and is the result where there is nothing to move.
        loads_S: released loads summed over records, or None where none were released.
        config: the model's configuration.
        table: the model's table.
        rate: largest step, in units of router scores, in [0, 1].

    Raises:
        ValueError: rate out of range, or loads that are not the model's.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"Expected rate={rate} in [0, 1].")
    fractions_LE = None if loads_S is None else load_fractions(loads_S, config)
    if fractions_LE is None or rate == 0.0:
        return vector
    steps_LE = rate * np.clip(1.0 - config.experts * fractions_LE, -1.0, 1.0)
    balanced = vector.copy()
    for slot, steps_E in zip(bias_slots(config, table), steps_LE, strict=True):
        moved_E = balanced[slot.start : slot.stop] + steps_E
        balanced[slot.start : slot.stop] = np.clip(
            moved_E - moved_E.mean(), -LARGEST_BIAS, LARGEST_BIAS
        )
    return balanced


def _fractions(routing: Routing) -> torch.Tensor:
    """Fraction of each record's choices that fell on each expert [B, E], in the type of the scores."""
    scores_BTE, ids_BR = routing.scores_BTE.detach(), routing.ids_BTK.flatten(1)
    counts_BE = scores_BTE.new_zeros((scores_BTE.shape[0], scores_BTE.shape[2]))
    counts_BE.scatter_add_(1, ids_BR, counts_BE.new_ones(ids_BR.shape))
    return counts_BE / ids_BR.shape[1]


def _load_scale(top_k: int, layers: int) -> float:
    return math.sqrt(top_k / layers) * LOAD_MARGIN
