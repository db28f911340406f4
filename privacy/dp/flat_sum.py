"""The gradient sums of a step, batch by batch, in one flat vector with a view for every parameter."""

from collections.abc import Sequence

import torch
from torch import nn

from privacy.dp.clipping import BatchSum

# P numbers


class FlatSum:
    """A running sum over the batches of a step. Not protected: without noise it must not leave."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [value.numel() for value in parameters]
        self.values_P = torch.zeros(sum(sizes), device=parameters[0].device)
        pieces = self.values_P.split(sizes)
        self.views = [piece.view_as(value) for piece, value in zip(pieces, parameters, strict=True)]
        """One view for each parameter, in their order."""

    @torch.no_grad()
    def add(self, batch: BatchSum) -> None:
        """Adds a batch's gradients."""
        for view, total in zip(self.views, batch.gradients, strict=True):
            if total is not None:
                view.add_(total)
