"""Rows of a table become tokens, one per column, with a CLS token before them.

1. `TabularEncoder` writes each value into slots of numbers in [0, 1] or close to it, using public constants only:
   slot 0 is 1, slot 1 says that the value is missing, the others hold the piecewise-linear encoding of a quantity or
   the one-hot encoding of a category. All of them but slot 0 and 1 are 0 where the value is missing.
2. `FeatureLinear` maps the slots of each column to a token with weights of its own, so tokens need no positions.

Values are float32, NaN where missing, a category as its index in the schema; they were checked when the table was read.
"""

import torch
from torch import nn

from model.schema import CategoryColumn, NumericColumn, TableSchema

# B rows, C columns, F tokens = CLS and columns, W slots of the widest column, U slots in use, D width

CONSTANT_SLOT, MISSING_SLOT, FIRST_VALUE_SLOT = 0, 1, 2


class TabularEncoder:
    """Values to slots. Pure: no weights, no state, nothing learnt from data."""

    def __init__(self, table: TableSchema) -> None:
        self.shape = shape = table.encoding_shape
        self._origin_FW = torch.zeros(shape)
        self._slope_FW = torch.zeros(shape)
        self._low_FW = torch.zeros(shape)
        self._high_FW = torch.zeros(shape)
        self._is_code_FW = torch.zeros(shape, dtype=torch.bool)
        self._missing_FW = torch.zeros(shape)
        self._low_FW[:, CONSTANT_SLOT] = self._high_FW[:, CONSTANT_SLOT] = 1.0
        self._missing_FW[:, CONSTANT_SLOT] = self._missing_FW[:, MISSING_SLOT] = 1.0
        # The constants of the columns are left out of the flat encoding: one is enough for a linear model.
        used: list[int] = []
        for feature, column in enumerate(table.columns, start=1):
            if isinstance(column, CategoryColumn):
                self._place_codes(feature, column)
            else:
                self._place_bins(feature, column)
            first = feature * shape[1] + MISSING_SLOT
            used.extend(range(first, first + 1 + column.encoding_slots))
        self._used_U = torch.tensor(used)
        limits = [
            (column.minimum, column.maximum)
            if isinstance(column, NumericColumn)
            else (0.0, float(len(column.categories) - 1))
            for column in table.columns
        ]
        self._minimum_C = torch.tensor([low for low, _ in limits])
        self._maximum_C = torch.tensor([high for _, high in limits])

    def encode(self, values_BC: torch.Tensor) -> torch.Tensor:
        """Rows of values as slots [B, F, W]; a value outside the column's range counts as the nearest in it.

        Quantities follow Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning",
        eq. 1: a bin below the value holds 1, a bin above it 0, its own bin how far it got; the first bin may fall
        below 0 and the last one rise above 1.

        Raises:
            ValueError: the rows have another number of columns than the table.
        """
        columns = self._minimum_C.shape[0]
        if values_BC.dim() != 2 or values_BC.shape[1] != columns:
            raise ValueError(f"Expected values [B, {columns}], got {tuple(values_BC.shape)}.")
        device = values_BC.device
        clamped_BC = values_BC.clamp(self._minimum_C.to(device), self._maximum_C.to(device))
        values_BF1 = nn.functional.pad(clamped_BC, (1, 0)).unsqueeze(2)
        offsets_BFW = values_BF1 - self._origin_FW.to(device)
        quantities_BFW = (offsets_BFW * self._slope_FW.to(device)).clamp(
            self._low_FW.to(device), self._high_FW.to(device)
        )
        codes_BFW = (offsets_BFW == 0).to(quantities_BFW.dtype)
        slots_BFW = torch.where(self._is_code_FW.to(device), codes_BFW, quantities_BFW)
        return torch.where(values_BF1.isnan(), self._missing_FW.to(device), slots_BFW)

    def flatten(self, encoding_BFW: torch.Tensor) -> torch.Tensor:
        """The slots in use as one row of numbers [B, U], without constants: the input of a linear model."""
        return encoding_BFW.flatten(1).index_select(1, self._used_U.to(encoding_BFW.device))

    def _place_bins(self, feature: int, column: NumericColumn) -> None:
        slots = slice(FIRST_VALUE_SLOT, FIRST_VALUE_SLOT + column.encoding_slots)
        edges = torch.tensor(column.bins)
        self._origin_FW[feature, slots] = edges[:-1]
        self._slope_FW[feature, slots] = 1.0 / (edges[1:] - edges[:-1])
        self._high_FW[feature, slots] = 1.0
        self._low_FW[feature, slots.start] = -torch.inf
        self._high_FW[feature, slots.stop - 1] = torch.inf

    def _place_codes(self, feature: int, column: CategoryColumn) -> None:
        slots = slice(FIRST_VALUE_SLOT, FIRST_VALUE_SLOT + column.encoding_slots)
        self._origin_FW[feature, slots] = torch.arange(column.encoding_slots).float()
        self._is_code_FW[feature, slots] = True


class FeatureLinear(nn.Module):
    """A matrix per token: slots of one column to one vector. The constant slot is its bias."""

    def __init__(self, features: int, encoding_width: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, encoding_width, width))

    def forward(self, encoding_BFW: torch.Tensor) -> torch.Tensor:
        """Tokens [B, F, D]."""
        tokens_FBD = torch.bmm(encoding_BFW.transpose(0, 1), self.weight)
        return tokens_FBD.transpose(0, 1).contiguous()
