"""The binary head: what a linear model says about the row, plus what the trunk adds to it.

Both parts start at zero. Training therefore begins as a logistic regression, which a few noisy steps can already fit,
and the trunk earns its influence. Without the skip a mixture of experts learns little from a small table under noise.
"""

import torch
from torch import nn

from model.trunk import NORM_EPSILON

# B rows, U slots of the flat encoding, D width


class BinaryHead(nn.Module):
    """Linear skip from the encoding plus a linear read-out of the CLS token."""

    def __init__(self, flat_width: int, width: int) -> None:
        super().__init__()
        self.skip = nn.Linear(flat_width, 1)
        self.norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.cls = nn.Linear(width, 1, bias=False)
        # A normed token has squared length `width` and is much the same for all rows: unscaled it would act as a bias
        # with that gain, which makes SGD unstable and takes most of a clipped gradient.
        self.cls_scale = width**-0.5

    def forward(self, flat_BU: torch.Tensor, cls_BD: torch.Tensor) -> torch.Tensor:
        """Log-odds of the positive class [B]."""
        return (self.skip(flat_BU) + self.cls_scale * self.cls(self.norm(cls_BD))).squeeze(1)
