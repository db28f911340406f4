"""Gradient inversion: what one released change of a layer says about the input that caused it, without any search.

- A linear layer whose change came from one record: its input is the change of the weight divided by the change of the
  bias (Phong et al. 2018, eq. 3).
- An expert that one token visited: the change of its matrix is one outer product, token times gradient; the token is
  the leading singular vector, up to sign and length. In a mixture of experts a sum over many records still has such
  experts, so a sum alone does not hide a record.

Both are exact without noise. Noise on every coordinate, also of experts that nobody visited, ends them.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

# E experts, I inputs, O outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertInversion:
    """What the change of one expert's matrix looks like."""

    token_I: Tensor = field(repr=False)  # noqa: N815 - shape suffix
    """Guess at the direction of the token, of length 1."""
    purity: float
    """Share of the squared change that one outer product explains, in [0, 1]; 1 where a single token came."""


def invert_linear(weight_change_OI: Tensor, bias_change_O: Tensor) -> Tensor:
    """Guess at the input [I] of a linear layer, from the output whose bias moved most.

    Raises:
        ValueError: no bias moved, so nothing can be said.
    """
    output = int(bias_change_O.abs().argmax())
    if bias_change_O[output] == 0:
        raise ValueError("Expected a bias that moved, all stayed as they were.")
    return weight_change_OI[output] / bias_change_O[output]


def invert_experts(change_EIO: Tensor) -> list[ExpertInversion | None]:
    """A guess per expert; None where nothing moved.

    Args:
        change_EIO: change of the stacked matrices; rows are inputs.
    """
    guesses: list[ExpertInversion | None] = []
    for change_IO in change_EIO.double():
        if not bool(change_IO.any()):
            guesses.append(None)
            continue
        left_IR, values_R, _ = torch.linalg.svd(change_IO, full_matrices=False)
        squares_R = values_R.square()
        guesses.append(
            ExpertInversion(token_I=left_IR[:, 0], purity=float(squares_R[0] / squares_R.sum()))
        )
    return guesses


def likeness(guess_I: Tensor, truth_I: Tensor) -> float:
    """|cosine| of the angle between guess and truth, in [0, 1]; 0 if either is zero."""
    guess_I, truth_I = guess_I.double(), truth_I.double()
    lengths = float(guess_I.norm() * truth_I.norm())
    return abs(float(guess_I @ truth_I)) / lengths if lengths > 0.0 else 0.0


def chance_likeness(dimension: int) -> float:
    """Mean |cosine| of a random direction with a fixed one, about sqrt(2 / (pi * dimension))."""
    return float((2.0 / (torch.pi * dimension)) ** 0.5)
